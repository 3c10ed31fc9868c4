"""A figure's files: pictures, data, and how it was made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowland.deep.records import MetricsRow
from lowland.figures.caption import caption, not_default
from lowland.figures.style import save_all
from lowland.runs import describe_environment
from lowland.runs.atomic import write_json
from lowland.runs.results import write_table
from lowland.sweeps import Failures, Store, Task, in_levels

SUFFIXES = (".png", ".pdf", ".svg")
Row = dict[str, Any]


def write_figure(
    directory: Path,
    picture: Figure,
    rows: Sequence[Row],
    tasks: Sequence[Task],
    store: Store,
    failures: Failures,
    about: Mapping[str, Any],
) -> list[str]:
    """Writes a figure's files: ``figure.png``, ``.pdf``, ``.svg``, ``data.parquet`` and ``figure.json``.

    Args:
        directory: Where to.
        picture: The figure.
        rows: What was drawn.
        tasks: What it is made of, and with it what that needs.
        store: Where the runs are.
        failures: Why tasks that failed did.
        about: Name, title, source, scale, command, note and claims.

    Returns:
        Names of the tasks that it was drawn without.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_all(picture, directory / "figure", SUFFIXES)
    write_rows(directory / "data.parquet", rows)
    every = [task for level in in_levels(tasks) for task in level]
    missing = [task.name for task in every if not store.has(task)]
    more = {
        "caption": caption(tasks),
        "seconds": round(sum(seconds_of(task, store) for task in every), 1),
        "missing": {name: failures.get(name, "it was not run.") for name in missing},
        "drawn": time.strftime("%Y-%m-%d"),
        "environment": describe_environment(),
        "runs": [_run(task, store) for task in every],
    }
    write_json(directory / "figure.json", {**about, **more})
    return missing


def _run(task: Task, store: Store) -> Row:
    """A run as the report lists it."""
    config = task.describe()
    about: Row = {"name": task.name, "config": not_default(config), "seconds": seconds_of(task, store)}
    if store.has(task) and "command" not in config:
        last = store.run(task).last_row(MetricsRow)
        about["numbers"] = {
            name: last.get(name) for name in ("test_error", "validation_error", "train_error", "train_loss")
        }
    return about


def seconds_of(task: Task, store: Store) -> float:
    """How long a finished task took. A training run counts from its first step, however often it stopped."""
    if not store.has(task):
        return 0.0
    rows = store.run(task).rows()
    found: float | None = rows[-1].get("seconds") if rows else None
    return store.times().get(task.name, 0.0) if found is None else found


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows, which need not all have the same names, as a Parquet file; what a row lacks is null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, {name: [row.get(name) for row in rows] for name in names})
