"""Rows of the small models' runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowland.figures.paper.figure import Rows
from lowland.runs import as_rows, read_table
from lowland.runs.records import SmallRow
from lowland.sweeps import Simulation, Store, Task


def finished(tasks: Sequence[Task], store: Store) -> list[Simulation]:
    """The experiments that are there."""
    return [task for task in tasks if isinstance(task, Simulation) and store.has(task)]


def final_rows(tasks: Sequence[Task], store: Store) -> Rows:
    """The rows that the experiments' runs left: final losses, norms and so on."""
    return [
        {"kind": "final", "published": False} | row
        for task in finished(tasks, store)
        for row in store.run(task).rows(SmallRow)
    ]


def table_rows(tasks: Sequence[Task], store: Store, table: str, kind: str) -> Rows:
    """The rows of a table of all experiments."""
    rows: Rows = []
    for task in finished(tasks, store):
        own = as_rows(read_table(store.run(task).path / f"{table}.parquet", ["run"]))
        rows += [{"kind": kind, "published": False} | row for row in own]
    return rows


def of_kind(rows: Rows, kind: str) -> Rows:
    """The rows of one kind."""
    return [row for row in rows if row["kind"] == kind]


def named(rows: Rows, run: str) -> dict[str, Any] | None:
    """The final row of a run."""
    return next((row for row in rows if row["kind"] == "final" and row["run"] == run), None)
