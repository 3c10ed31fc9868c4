"""A figure's files: pictures, data, and how it was made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowland.deep.records import MetricsRow
from lowland.figures.paper.caption import caption, not_default
from lowland.figures.paper.figure import Claim, PaperFigure, Row, Rows, Scale
from lowland.figures.style import save_all
from lowland.figures.tasks import Failures, Store, Task, in_levels
from lowland.runs import describe_environment, write_json
from lowland.runs.results import write_table

SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn.

    Attributes:
        picture: Where its files are, without suffix.
        claims: What the paper's figure shows, beside ours.
        missing: Tasks that it was drawn without.
    """

    picture: Path
    claims: list[Claim]
    missing: list[str]


def drawn(figure: PaperFigure, scale: Scale, out: Path, *, failures: Failures | None = None) -> Drawn | None:
    """Draws a figure from the runs in ``out`` and writes its files into ``out/NAME-SCALE``.

    ``figure.png``, ``.pdf`` and ``.svg``; ``data.parquet``, the rows that were drawn; ``figure.json``: title,
    caption, claims, command, and of every config what is not its default, with the name of its run.

    Args:
        figure: The figure.
        scale: At which scale.
        out: Where its runs are, and its files will be.
        failures: Why tasks that failed did.

    Returns:
        What was drawn; ``None``, and no file, if none of its runs is there.
    """
    store, tasks = Store(out / "runs"), figure.runs(scale)
    if not any(store.has(task) for task in tasks):
        return None
    rows = figure.data(tasks, store)
    claims = figure.claims(rows)
    directory = out / f"{figure.name}-{scale}"
    directory.mkdir(parents=True, exist_ok=True)
    picture = figure.plot(rows)
    save_all(picture, directory / "figure", SUFFIXES)
    write_rows(directory / "data.parquet", rows)
    every = [task for level in in_levels(tasks) for task in level]
    missing = [task.name for task in every if not store.has(task)]
    about = {
        "name": figure.name,
        "title": figure.title,
        "source": figure.source,
        "scale": scale,
        "command": f"lowland figure {figure.name} --scale {scale}",
        "caption": caption(tasks),
        "note": figure.note,
        "claims": [asdict(claim) for claim in claims],
        "seconds": round(sum(seconds_of(task, store) for task in every), 1),
        "missing": {name: (failures or {}).get(name, "it was not run.") for name in missing},
        "drawn": time.strftime("%Y-%m-%d"),
        "environment": describe_environment(),
        "runs": [_run(task, store) for task in every],
    }
    write_json(directory / "figure.json", about)
    return Drawn(directory / "figure", claims, missing)


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


def write_rows(path: Path, rows: Rows) -> None:
    """Writes rows, which need not all have the same names, as a Parquet file; what a row lacks is null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, {name: [row.get(name) for row in rows] for name in names})


def estimated(figures: Sequence[PaperFigure], scale: Scale, store: Store) -> list[dict[str, Any]]:
    """For each figure its tasks, those that are done or an earlier one's, and what the rest will cost."""
    rows, seen = [], set[str]()
    for figure in figures:
        tasks = [task for level in in_levels(figure.runs(scale)) for task in level]
        done = [task for task in tasks if store.has(task)]
        shared = [task for task in tasks if task.name in seen and not store.has(task)]
        rest = [task for task in tasks if task.name not in seen and not store.has(task)]
        seen |= {task.name for task in tasks}
        rows.append(
            {
                "figure": figure.name,
                "tasks": len(tasks),
                "done": len(done),
                "shared": len(shared),
                "seconds": sum(task.cost() for task in rest),
            }
        )
    return rows
