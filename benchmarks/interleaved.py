"""Times of several steps, taken in turns in one process, and the memory that each needs."""

import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]


def measured(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, after one round to warm up."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            synchronize()
            times[name].append(time.perf_counter() - start)
    return times


def ratios(times: dict[str, list[float]], of: str, to: str) -> tuple[float, float, float]:
    """Quartiles of the ratios within each round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times[of], times[to], strict=True)], n=4)
    return low, middle, high


def synchronize() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(make: Callable[[], Step]) -> int:
    """The most bytes that tensors held during the first step of ``make()``, above what it was given.

    The first step, so that what is kept from step to step (momentum, copies) counts.
    """
    step = make()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    return held_over(step)[0]


def held_over(step: Step) -> tuple[int, int]:
    """Bytes on the CPU that tensors hold at most during ``step``, and after it, above what there was."""
    held = [held for _, held in timeline(step)]
    return max(held, default=0), held[-1] if held else 0


def timeline(step: Step) -> list[tuple[str, int]]:
    """What the profiler sees of ``step``, and the bytes on the CPU that tensors hold more than before."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        step()
    seen, held = [], 0
    results = profile.profiler.kineto_results
    for event in sorted(results.events(), key=lambda e: e.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        seen.append((event.name(), held))
    return seen
