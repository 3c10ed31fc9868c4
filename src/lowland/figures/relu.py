"""One-hidden-layer ReLU networks: the fits of all seeds, and their losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowland.figures.losses import draw_losses
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.relu import Network, Regression

Rows = Sequence[Mapping[str, Any]]
_POINTS = 600


def fit_rows(problem: Regression, networks: Iterable[tuple[str, int, Network]]) -> list[dict[str, Any]]:
    """The points, and the functions on a grid.

    Args:
        problem: One input.
        networks: What each is called, its seed, and the network.

    Returns:
        Rows of ``x`` and ``y``: of ``kind`` point, and of ``kind`` fit with ``run`` and ``seed``.
    """
    grid = np.linspace(problem.x.min() - 0.15, problem.x.max() + 0.15, _POINTS)
    points = zip(problem.x[:, 0], problem.y, strict=True)
    rows: list[dict[str, Any]] = [{"kind": "point", "x": float(x), "y": float(y)} for x, y in points]
    for run, seed, network in networks:
        about = {"kind": "fit", "run": run, "seed": seed}
        fit = zip(grid, network(grid[:, None]), strict=True)
        rows += [about | {"x": float(x), "y": float(y)} for x, y in fit]
    return rows


@in_our_style
def plot_fits(rows: Rows) -> Figure:
    """The functions that all seeds found, a panel per method, over the points and the lines between them.

    Args:
        rows: Those of :func:`fit_rows`; the mean ``slope_variation`` of a ``run``, if there are rows with
            it, is written below its panel.
    """
    points = sorted((row["x"], row["y"]) for row in rows if row.get("kind") == "point")
    fits = [row for row in rows if row.get("kind") == "fit"]
    heights = [y for _, y in points]
    margin = 0.6 * (max(heights) - min(heights))
    names = list(dict.fromkeys(row["run"] for row in fits))
    figure, axes = panels(names)
    for ax, name in zip(axes, names, strict=True):
        own = [row for row in fits if row["run"] == name]
        for seed in sorted({row["seed"] for row in own}):
            fit = [(row["x"], row["y"]) for row in own if row["seed"] == seed]
            ax.plot(*zip(*fit, strict=True), linewidth=1.0, alpha=0.8)
        ax.plot(*zip(*points, strict=True), "o:", color="black", markersize=4, linewidth=1.0)
        ax.set(xlabel=_below(rows, name), ylim=(min(heights) - margin, max(heights) + margin))
    return figure


def _below(rows: Rows, name: str) -> str:
    found = [row.get("slope_variation") for row in rows if row.get("run") == name]
    variations = [value for value in found if value is not None]
    return f"x; slope varies by {np.mean(variations):.0f}" if variations else "x"


@in_our_style
def plot_losses(rows: Rows) -> Figure:
    """The loss at the weights and at the perturbed ones over iterations.

    Args:
        rows: ``run``, ``seed``, ``iteration``, ``loss`` and ``perturbed_loss``, as in the table ``result``.
    """
    figure, axes = panels(["loss", "loss at the perturbed weights"], height=3.8)
    draw_losses(axes, rows, ("loss", "perturbed_loss"))
    shared_legend(figure, axes)
    return figure
