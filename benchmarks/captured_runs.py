"""What recorded steps are worth in the demo and in the quick sweep over m: minutes of one core.

``python benchmarks/captured_runs.py [--data-dir DIR] [--steps 60]`` takes steps of a run of each kind, as it
is and with recorded steps in turns, on one thread, and multiplies the medians by the steps of all runs of the
kind. Evaluations are not in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from lowland.cli.demo import RUNS
from lowland.deep import Place, TrainConfig, TrainState, load_data
from lowland.figures.paper.m_sweep import runs
from lowland.figures.paper.networks import method
from lowland.sweeps import Training


def main() -> None:
    """Prints a row for each kind of run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = (
        "runs | steps of a run | as it is ms | recorded ms | ratio | replayed | minutes as it is | recorded"
    )
    print(f"| | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|")
    demo = [replace(config, seed=seed) for seed in range(5) for config in RUNS.values()]
    sweep = [task.config for task in runs("quick") if isinstance(task, Training)]
    for name, configs in (("demo", demo), ("m-sweep", sweep)):
        _rows(name, configs, options.data_dir, options.steps)


def _rows(name: str, configs: Iterable[TrainConfig], folder: Path | None, steps: int) -> None:
    counts = Counter(method(config) for config in configs)
    kinds = {method(config): config for config in configs}
    minutes = [0.0, 0.0]
    for kind, config in kinds.items():
        plain, recorded, each, share = _measured(config, folder, steps)
        total = counts[kind] * each * config.epochs
        of_kind = [total * seconds / 60 for seconds in (plain, recorded)]
        minutes = [a + b for a, b in zip(minutes, of_kind, strict=True)]
        cells = [f"{name}, {kind}", counts[kind], each * config.epochs]
        cells += [f"{1e3 * plain:.2f}", f"{1e3 * recorded:.2f}", f"{recorded / plain:.2f}", share]
        print("| " + " | ".join(map(str, [*cells, *(f"{m:.1f}" for m in of_kind)])) + " |", flush=True)
    print(f"| {name} | | | | | {minutes[1] / minutes[0]:.2f} | | {minutes[0]:.1f} | {minutes[1]:.1f} |")


def _measured(config: TrainConfig, folder: Path | None, steps: int) -> tuple[float, float, int, str]:
    """Medians of seconds as it is and recorded, steps of an epoch, and which share was replayed."""
    data = load_data(config, Place(device="cpu", data_dir=folder))
    states = [TrainState(config, data, torch.device("cpu")) for _ in range(2)]
    states[0].sam.capture = "off"
    times: list[list[float]] = [[], []]
    for _ in range(steps):
        for state, taken in zip(states, times, strict=True):
            if state.iteration == state.steps_per_epoch:
                state.next_epoch()
            began = time.perf_counter()
            state.step()
            taken.append(time.perf_counter() - began)
    captures = states[1].sam.captures
    done = 0 if captures is None else captures.replayed + captures.run
    share = f"{100 * captures.replayed / done:.0f} %" if captures is not None and done else "the loop"
    plain, recorded = (statistics.median(taken[5:]) for taken in times)
    return plain, recorded, states[0].steps_per_epoch, share


if __name__ == "__main__":
    main()
