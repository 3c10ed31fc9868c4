"""What the paper's figures cost, from the runs that ``lowland figure`` left.

``python benchmarks/figures.py --out DIR [--scale quick]`` prints a row per figure: its runs; the time they
took one after the other, as recorded; the part of it that no figure above shares; and both sums with every
run at the pace of the fastest of its kind, as on a machine with nothing else to do. N jobs on N cores take an
N-th of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from lowland.figures.files import seconds_of
from lowland.figures.paper import FIGURES
from lowland.figures.paper.networks import method
from lowland.sweeps import Store, Task, Training, in_levels


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/figures"))
    parser.add_argument("--scale", choices=("quick", "small", "paper"), default="quick")
    options = parser.parse_args()
    store = Store(options.out / "runs")
    tasks = {
        name: [task for level in in_levels(figure.runs(options.scale)) for task in level]
        for name, figure in FIGURES.items()
    }
    took = {task.name: seconds_of(task, store) for own in tasks.values() for task in own if store.has(task)}
    fastest = _fastest({task.name: task for own in tasks.values() for task in own}, took)
    print("| | runs | minutes of one core | not shared | at the fastest pace | not shared |")
    print("|---|---|---|---|---|---|")
    seen: set[str] = set()
    for name, own in tasks.items():
        done = {task.name for task in own} & took.keys()
        columns = (_minutes(times, names) for times in (took, fastest) for names in (done, done - seen))
        print(f"| {name} | {len(done)} of {len(own)} | {' | '.join(columns)} |")
        seen |= done
    print(f"| all | {len(seen)} | | {_minutes(took, seen)} | | {_minutes(fastest, seen)} |")


def _minutes(times: dict[str, float], names: Iterable[str]) -> str:
    return f"{sum(times[name] for name in names) / 60:.1f}"


def _fastest(tasks: dict[str, Task], took: dict[str, float]) -> dict[str, float]:
    """The time of each run, if it had the pace of the fastest of its kind."""
    kinds = {name: _kind(tasks[name]) for name in took}
    least: dict[object, float] = {}
    for name, seconds in took.items():
        least[kinds[name]] = min(seconds, least.get(kinds[name], seconds))
    return {name: least[kinds[name]] for name in took}


def _kind(task: Task) -> object:
    """What runs of the same length have in common."""
    if isinstance(task, Training):
        return method(task.config), task.config.epochs, task.config.dataset, task.config.model
    return str(task.describe().get("measure", task.name))


if __name__ == "__main__":
    main()
