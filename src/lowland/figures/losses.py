"""Losses of small models over iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lowland.figures.style import drawable

Rows = Sequence[Mapping[str, Any]]


def draw_losses(axes: Sequence[Axes], rows: Rows, names: Sequence[str]) -> None:
    """Losses over iterations, a panel each, with a cross where one diverged.

    Of several seeds: their median, and thin each of them; no median if they stopped at different times.

    Args:
        axes: One per loss.
        rows: ``run``, ``iteration``, the losses and, if there are several, ``seed``.
        names: The losses.
    """
    for ax, name in zip(axes, names, strict=True):
        for number, label in enumerate(dict.fromkeys(row["run"] for row in rows)):
            seeds: dict[Any, list[tuple[int, float]]] = {}
            for row in (row for row in rows if row["run"] == label):
                seeds.setdefault(row.get("seed"), []).append((row["iteration"] + 1, row[name]))
            _draw_seeds(ax, [np.array(sorted(points)).T for points in seeds.values()], number, label)
        ax.set(xscale="log", yscale="log", xlabel="iteration")


def _draw_seeds(ax: Axes, curves: Sequence[np.ndarray], number: int, label: str) -> None:
    losses = [drawable(values) for _, values in curves]
    color, style = f"C{number % 8}", "-" if number < 8 else "--"
    together = len({len(seen) for seen in losses}) == 1
    if together:
        ax.plot(curves[0][0], np.median(losses, axis=0), style, color=color, label=label)
    else:
        ax.plot([], [], style, color=color, label=label)
    for (at, _), seen in zip(curves, losses, strict=True):
        if len(curves) > 1:
            thin = (0.5, 0.5) if together else (0.8, 1.0)
            ax.plot(at, seen, style, color=color, linewidth=thin[0], alpha=thin[1])
        finite = np.flatnonzero(np.isfinite(seen))
        if 0 < len(finite) < len(seen):
            ax.plot(at[finite[-1]], seen[finite[-1]], "x", color=color)
