"""A figure of the paper, drawn from runs that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowland.figures.files import write_figure
from lowland.figures.paper.figure import Claim, PaperFigure, Scale
from lowland.sweeps import Failures, Store, in_levels


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
    missing = write_figure(
        out / f"{figure.name}-{scale}",
        figure.plot(rows),
        rows,
        tasks,
        store,
        failures or {},
        {
            "name": figure.name,
            "title": figure.title,
            "source": figure.source,
            "scale": scale,
            "command": f"lowland figure {figure.name} --scale {scale}",
            "note": figure.note,
            "claims": [asdict(claim) for claim in claims],
        },
    )
    return Drawn(out / f"{figure.name}-{scale}" / "figure", claims, missing)


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
