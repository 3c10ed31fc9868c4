"""What m-SAM costs when all groups run at once, relative to ordinary SAM (m = B) and to the loop over groups.

    python benchmarks/m_sam.py --rounds 15 --floor
    python benchmarks/m_sam.py --networks vit --m 4 --profile
    python benchmarks/m_sam.py --networks bert --checkpoint
    python benchmarks/m_sam.py --capture
    python benchmarks/m_sam.py --capture --compile --networks mlp

Ordinary SAM is the leanest two-pass step that plain PyTorch allows (``networks.ordinary_sam``). All is
float32; ``.grad`` is used by no side but pytorch_optimizer's; each engine's first call, which settles how it
runs, is not timed. In each round every kind makes one step, in turns, and the ratios are medians of those
within the rounds. The loop takes long at small m, so that it is timed, beside the batched engine, in a
quarter of the rounds. Memory is the peak within a step above what was held before it.

Where parameters take the time, a second table compares ordinary SAM itself with one plain gradient. There
pytorch_optimizer's SAM wraps an optimizer whose step does nothing, since the others make no update either.

With ``--checkpoint`` models of transformers run their layers again in every backward pass, for all kinds.

With ``--capture`` steps are recorded and replayed, with ``--compile`` compiled too, beside steps that are run
as they are and ordinary SAM, itself recorded and not. The seconds are those of the call that records (which
compiles as well), once for each network and m.

``--floor`` adds the least that this machine could take: floor.py says how it is found. Shown are the floor as
a share of the floor of the step compared with, and as a share of the time that this step really took.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from floor import Machine, floor, measured_machine
from interleaved import Step, measured, peak_memory, ratios
from lowland.sam.captured.unrecordable import Unrecordable
from networks import (
    MANY_GROUPS,
    MANY_WEIGHTS,
    NETWORKS,
    RHO,
    CapturedStep,
    Problem,
    available,
    m_sam,
    ordinary_sam,
    plain_step,
    recorded,
)


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        device: Where.
        rounds: How often.
        batch: Examples; ``None`` for each network's own.
        checkpoint: Whether activations are checkpointed.
        captures: How recorded steps are run.
        machine: Speeds for the floor; ``None`` leaves it out.
    """

    device: torch.device
    rounds: int
    batch: int | None
    checkpoint: bool
    captures: list[str]
    machine: Machine | None


def main() -> None:
    """Prints the tables, or one profile."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads, {arguments.rounds} rounds")
    if arguments.profile:
        _profile(NETWORKS[arguments.networks[0]].problem(device, batch=arguments.batch), arguments.m[0])
        return
    machine = measured_machine(device) if arguments.floor else None
    if machine is not None:
        print(f"peak {machine.operations / 1e9:.0f} Gflop/s, bandwidth {machine.bytes / 1e9:.1f} GB/s")
    captures = ["replay", *(["compile"] if arguments.compile else [])] if arguments.capture else []
    setting = Setting(device, arguments.rounds, arguments.batch, arguments.checkpoint, captures, machine)
    if captures:
        _captured([name for name in arguments.networks if name in MANY_GROUPS], arguments.m, setting)
        _captured_whole([name for name in arguments.networks if name in MANY_WEIGHTS], setting)
        return
    _many_groups([name for name in arguments.networks if name in MANY_GROUPS], arguments.m, setting)
    _many_weights([name for name in arguments.networks if name in MANY_WEIGHTS], setting)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--m", nargs="+", default=["1", "4", "16", "B"], help="numbers, or B for the batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="examples, in place of each network's own")
    parser.add_argument("--checkpoint", action="store_true", help="checkpoint activations")
    parser.add_argument("--capture", action="store_true", help="recorded steps beside those that are not")
    parser.add_argument("--compile", action="store_true", help="and compiled ones")
    parser.add_argument("--profile", action="store_true", help="operators of the first network and m")
    parser.add_argument("--floor", action="store_true", help="the least time this machine could take")
    return parser.parse_args()


def _many_groups(names: list[str], ms: list[str], setting: Setting) -> None:
    if not names:
        return
    columns = ["network", "B", "m", "SAM ms", "batched / SAM", "quartiles", "auto / SAM", "loop / batched"]
    _header([*columns, "memory / SAM's", *_floor_columns("SAM", setting)])
    for name, problem in available(names, setting.device, setting.batch):
        if setting.checkpoint:
            problem.checkpoint()
        for m in _sizes(ms, len(problem.x)):
            _row([NETWORKS[name].title, len(problem.x), m, *_m_sam_cells(problem, m, setting)])


def _m_sam_cells(problem: Problem, m: int, setting: Setting) -> list[object]:
    batched = m_sam(problem, "batched", m)
    steps = {"SAM": ordinary_sam(problem), "batched": batched, "auto": m_sam(problem, "auto", m)}
    times = measured(steps, setting.rounds)
    slow = measured({"batched": batched, "loop": m_sam(problem, "loop", m)}, max(3, setting.rounds // 4))
    memory = [
        peak_memory(partial(make, problem)) for make in (ordinary_sam, partial(m_sam, engine="batched", m=m))
    ]
    low, middle, high = ratios(times, "batched", "SAM")
    return [
        f"{1e3 * statistics.median(times['SAM']):.1f}",
        f"{middle:.2f}",
        f"{low:.2f}–{high:.2f}",
        f"{ratios(times, 'auto', 'SAM')[1]:.2f}",
        f"{ratios(slow, 'loop', 'batched')[1]:.2f}",
        f"{memory[1] / memory[0]:.2f}",
        *_floor_cells(problem, "ordinary", "m_sam", statistics.median(times["SAM"]), setting),
    ]


def _captured(names: list[str], ms: list[str], setting: Setting) -> None:
    if not names:
        return
    kinds = [f"{kind} / SAM" for kind in _names_of(setting)]
    columns = ["m", "network", "B", "SAM ms", *kinds, "quartiles of replayed"]
    _header([*columns, "seconds to record", "replayed", "guard", "memory / SAM's, as it is", "replayed"])
    for name, problem in available(names, setting.device, setting.batch):
        for m in _sizes(ms, len(problem.x)):
            row = [m, NETWORKS[name].title, len(problem.x)]
            _row([*row, *_captured_cells(problem, m, setting, ordinary_sam(problem))])


def _captured_whole(names: list[str], setting: Setting) -> None:
    """SAM with m = B relative to one plain gradient, where parameters take the time."""
    if not names:
        return
    print()
    kinds = [f"{kind} / plain" for kind in _names_of(setting)]
    columns = ["m", "network", "B", "plain ms", *kinds, "quartiles of replayed"]
    _header([*columns, "seconds to record", "replayed", "guard", "memory / plain's, as it is", "replayed"])
    for name, problem in available(names, setting.device, setting.batch):
        row = ["B", NETWORKS[name].title, len(problem.x)]
        _row([*row, *_captured_cells(problem, len(problem.x), setting, plain_step(problem))])


_DONE = {"replay": "replayed", "compile": "compiled"}


def _names_of(setting: Setting) -> list[str]:
    return ["as it is", *(_DONE[kind] for kind in setting.captures), "SAM recorded"]


def _captured_cells(problem: Problem, m: int, setting: Setting, against: Step) -> list[object]:
    captured = {_DONE[kind]: CapturedStep(problem, m, kind) for kind in setting.captures}
    steps = {"as it is": m_sam(problem, "batched", m), **captured}
    with suppress(Unrecordable):  # a model that reads numbers from tensors where it is run by itself
        steps["SAM recorded"] = recorded(problem, ordinary_sam(problem))
    times = measured({"against": against, **steps}, setting.rounds)
    low, _, high = ratios(times, "replayed", "against")
    memory = [
        peak_memory(lambda step=step: step) for step in (against, steps["as it is"], captured["replayed"])
    ]
    return [
        f"{1e3 * statistics.median(times['against']):.2f}",
        *(f"{ratios(times, k, 'against')[1]:.2f}" if k in steps else "–" for k in _names_of(setting)),
        f"{low:.2f}–{high:.2f}",
        ", ".join(f"{step.seconds:.1f}" for step in captured.values()),
        f"{100 * captured['replayed'].share:.0f} %",
        f"{100 * captured['replayed'].guarding():.1f} %",
        f"{memory[1] / memory[0]:.2f}",
        f"{memory[2] / memory[0]:.2f}",
    ]


def _many_weights(names: list[str], setting: Setting) -> None:
    if not names:
        return
    print()
    columns = ["network", "B", "m = B by", "ms", "/ plain step", "quartiles", "memory / plain step's"]
    _header([*columns, *_floor_columns("plain step", setting)])
    kinds = _kinds()
    for name, problem in available(names, setting.device, setting.batch):
        if setting.checkpoint:
            problem.checkpoint()
        steps = {kind: make(problem) for kind, make in kinds.items()}
        memory = {kind: peak_memory(partial(make, problem)) for kind, make in kinds.items()}
        times = measured(steps, setting.rounds)
        for kind in kinds:
            low, middle, high = ratios(times, kind, "plain step")
            _row([
                NETWORKS[name].title,
                len(problem.x),
                kind,
                f"{1e3 * statistics.median(times[kind]):.1f}",
                f"{middle:.2f}",
                f"{low:.2f}–{high:.2f}",
                f"{memory[kind] / memory['plain step']:.2f}",
                *_floor_cells(
                    problem, "plain", _LEAST[kind], statistics.median(times["plain step"]), setting
                ),
            ])  # fmt: skip


_LEAST = {
    "plain step": "plain",
    "lowland, batched": "m_sam",
    "lowland, auto": "m_sam",
    "lowland, loop": "ordinary",
    "two passes": "ordinary",
    "pytorch_optimizer": "ordinary",
}
"""The floor that each kind of step has."""


def _kinds() -> dict[str, Callable[[Problem], Step]]:
    kinds: dict[str, Callable[[Problem], Step]] = {"plain step": plain_step}
    for engine in ("batched", "auto", "loop"):
        kinds[f"lowland, {engine}"] = partial(_whole_batch, engine)
    kinds["two passes"] = ordinary_sam
    try:
        import pytorch_optimizer  # noqa: F401 - the peer may be missing
    except ImportError:
        print("pytorch_optimizer: left out, not installed.\n")
        return kinds
    return {**kinds, "pytorch_optimizer": _pytorch_optimizer}


def _whole_batch(engine: str, problem: Problem) -> Step:
    return m_sam(problem, engine, len(problem.x))


class _Still(torch.optim.SGD):
    """Makes no update."""

    def step(self, closure: object = None) -> None:
        """Does nothing."""


def _pytorch_optimizer(problem: Problem) -> Step:
    import pytorch_optimizer

    optimizer = pytorch_optimizer.SAM(problem.params, base_optimizer=_Still, rho=RHO, lr=1e-4)

    def step() -> None:
        problem.loss(problem.x, problem.y).backward()
        optimizer.first_step(zero_grad=True)
        problem.loss(problem.x, problem.y).backward()
        optimizer.second_step(zero_grad=True)

    return step


def _floor_columns(to: str, setting: Setting) -> list[str]:
    return [] if setting.machine is None else [f"floor / {to}'s floor", f"floor / {to}"]


def _floor_cells(problem: Problem, to: str, of: str, seconds: float, setting: Setting) -> list[str]:
    """The floor relative to the floor of the step compared with, and to its time."""
    if setting.machine is None:
        return []
    floors = floor(problem, setting.machine)
    least = getattr(floors, of)
    return [f"{least / getattr(floors, to):.2f}", f"{least / seconds:.2f}"]


def _profile(problem: Problem, m: str) -> None:
    """Prints the operators of one step, by the time they took themselves."""
    step = m_sam(problem, "batched", _sizes([m], len(problem.x))[0])
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if problem.x.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    taken = "self_device_time_total" if problem.x.is_cuda else "self_cpu_time_total"

    def seconds(event: Any) -> float:
        return getattr(event, taken) / 1e6

    events = sorted(profile.key_averages(), key=seconds, reverse=True)
    total = sum(map(seconds, events))
    _header(["operator", "seconds", "share", "calls"])
    for event in events[:25]:
        share = f"{100 * seconds(event) / total:.1f} %"
        _row([event.key[:60], f"{seconds(event):.4f}", share, event.count])


def _sizes(ms: list[str], batch: int) -> list[int]:
    """The m that fit the batch, each once."""
    found = [batch if m == "B" else int(m) for m in ms]
    return sorted({m for m in found if m <= batch})


def _header(columns: list[str]) -> None:
    _row(columns)
    _row(["---"] * len(columns))


def _row(cells: Iterable[object]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
