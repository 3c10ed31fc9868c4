"""Rows of the small models' runs, and their losses over iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lowland.figures.paper.figure import Rows
from lowland.figures.style import drawable
from lowland.figures.tasks import Simulation, Store, Task
from lowland.runs import read_table


def finished(tasks: Sequence[Task], store: Store) -> list[Simulation]:
    """The experiments that are there."""
    return [task for task in tasks if isinstance(task, Simulation) and store.has(task)]


def final_rows(tasks: Sequence[Task], store: Store) -> Rows:
    """The rows that the experiments' runs left: final losses, norms and so on."""
    return [
        {"kind": "final", "published": False} | row
        for task in finished(tasks, store)
        for row in store.run(task).rows()
    ]


def table_rows(tasks: Sequence[Task], store: Store, table: str, kind: str) -> Rows:
    """The rows of a table of all experiments."""
    rows: Rows = []
    for task in finished(tasks, store):
        columns = read_table(store.run(task).path / f"{table}.parquet")
        rows += [
            {"kind": kind, "published": False} | dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
    return rows


def of_kind(rows: Rows, kind: str) -> Rows:
    """The rows of one kind."""
    return [row for row in rows if row["kind"] == kind]


def named(rows: Rows, run: str) -> dict[str, Any] | None:
    """The final row of a run."""
    return next((row for row in rows if row["kind"] == "final" and row["run"] == run), None)


def draw_losses(axes: Sequence[Axes], rows: Rows, names: Sequence[str], *, log_x: bool = True) -> None:
    """Losses over iterations, a panel each: the median over seeds; a cross where a run diverged."""
    for ax, name in zip(axes, names, strict=True):
        for number, label in enumerate(dict.fromkeys(row["run"] for row in rows)):
            own = [row for row in rows if row["run"] == label]
            at = sorted({row["iteration"] for row in own})
            by_iteration: dict[int, list[float]] = {}
            for row in own:
                by_iteration.setdefault(row["iteration"], []).append(row[name])
            middle = drawable([np.median(by_iteration[i]) for i in at])
            ax.plot(
                np.array(at) + 1, middle, "-" if number < 8 else "--", color=f"C{number % 8}", label=label
            )
        ax.set(yscale="log", xlabel="iteration")
        if log_x:
            ax.set_xscale("log")
