"""Diagonal linear networks: losses, the radius, and Theorems 1 and 2 beside the simulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowland.diagonal.experiment import Outcome
from lowland.figures.losses import draw_losses
from lowland.figures.seeds import by_label
from lowland.figures.style import drawable, in_our_style, panels, shared_legend

Rows = Sequence[Mapping[str, Any]]
DOUBLED = "[2ρ]: the original's convention, whose 1-SAM climbs twice as far"
"""What the mark in labels means."""
STATEMENTS = {
    "loss": "loss above the minimum, last iterate",
    "gradient": "mean squared gradient, all iterates",
}
"""What Theorem 2 bounds."""


@in_our_style
def plot_losses(rows: Rows, phase_ends: Sequence[int] = ()) -> Figure:
    """Losses over iterations.

    Args:
        rows: ``run``, ``seed``, ``iteration``, ``train_loss`` and ``test_loss``, as in the table ``result``.
        phase_ends: Iterations at which one method gives way to the next.
    """
    figure, axes = panels(["training loss", "test loss"], height=4.2)
    draw_losses(axes, rows, ("train_loss", "test_loss"))
    for ax in axes:
        for end in phase_ends:
            ax.axvline(end, color="0.7", linewidth=0.8)
    shared_legend(figure, axes)
    _note_convention(figure, (row["run"] for row in rows))
    return figure


@in_our_style
def plot_radius(outcomes: Sequence[Outcome]) -> Figure:
    """Final test loss over the radius by method: mean and range over seeds; a cross on top for divergence."""
    figure, (ax,) = panels(["final test loss"])
    groups = by_label([o for o in outcomes if len(o.plan.phases) == 1])
    methods: dict[str, list[tuple[float, list[float]]]] = {}
    for label, runs in groups.items():
        method, _, _ = label.partition(",")
        mark = " [2ρ]" if "[2ρ]" in label else ""
        losses = drawable([o.result.test_loss[-1] for o in runs]).tolist()
        methods.setdefault(method + mark, []).append((runs[0].plan.phases[0].rho, losses))
    for method, points in methods.items():
        if points[0][0] == 0.0:
            ax.axhline(float(np.mean(points[0][1])), color="0.4", linestyle="--", label=method)
            continue
        finite = [(rho, losses) for rho, losses in points if np.isfinite(losses).all()]
        radii = [rho for rho, _ in finite]
        (line,) = ax.plot(radii, [np.mean(losses) for _, losses in finite], "o-", label=method)
        if any(len(losses) > 1 for _, losses in finite):
            low, high = [min(losses) for _, losses in finite], [max(losses) for _, losses in finite]
            ax.fill_between(radii, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        for rho, losses in points:
            if not np.isfinite(losses).all():
                where = ax.get_xaxis_transform()
                ax.plot(rho, 0.97, "x", color=line.get_color(), transform=where, clip_on=False)
    ax.set(xscale="log", yscale="log", xlabel="ρ")
    radii = sorted({rho for points in methods.values() for rho, _ in points if rho > 0.0})
    ax.set_xticks(radii, [f"{rho:g}" for rho in radii])
    ax.minorticks_off()
    ax.legend(loc="best")
    _note_convention(figure, groups)
    return figure


@in_our_style
def plot_theory(rows: Rows) -> Figure:
    """Theorem 1: how far each coordinate's initialization shrank, and the predictor the potential selects.

    Args:
        rows: ``run``, ``predicted``, ``shrunk``, ``minimizer`` and ``beta`` of every coordinate, as in the
            table ``weights``.
    """
    figure, axes = panels(["log(α / effective α), per coordinate", "coefficients"], height=4.2)
    shrinking, selected = axes
    for i, label in enumerate(dict.fromkeys(row["run"] for row in rows)):
        own = [row for row in rows if row["run"] == label and np.isfinite(row["beta"])]
        for ax, x, y in ((shrinking, "predicted", "shrunk"), (selected, "minimizer", "beta")):
            if own:
                ax.plot([r[x] for r in own], [r[y] for r in own], "o", ms=3, color=f"C{i % 8}", label=label)
    for ax in axes:
        ax.axline((0.0, 0.0), (1.0, 1.0), color="0.6", linewidth=0.8, zorder=0)
    shrinking.set(xscale="log", yscale="log")
    shrinking.set(xlabel="ρΔ along the trajectory", ylabel="read off the final weights")
    selected.set(xlabel="minimizer of the potential", ylabel="trained")
    shared_legend(figure, axes)
    _note_convention(figure, (row["run"] for row in rows))
    return figure


@in_our_style
def plot_convergence(rows: Rows) -> Figure:
    """Theorem 2: measured, with three standard errors, under the bound (dashed).

    Args:
        rows: ``run``, ``statement``, ``steps``, ``measured``, ``error`` and ``bound``: the table ``result``.
    """
    figure, axes = panels(list(STATEMENTS.values()), height=3.8)
    for ax, statement in zip(axes, STATEMENTS, strict=True):
        own = [row for row in rows if row["statement"] == statement]
        for i, label in enumerate(dict.fromkeys(row["run"] for row in own)):
            steps, measured, error, bound = (
                np.array([row[name] for row in own if row["run"] == label])
                for name in ("steps", "measured", "error", "bound")
            )
            ax.plot(steps, measured, color=f"C{i % 8}", label=label)
            ax.plot(steps, bound, "--", color=f"C{i % 8}", label=f"{label}, bound")
            low = np.maximum(measured - 3 * error, 0.1 * measured)
            ax.fill_between(steps, low, measured + 3 * error, color=f"C{i % 8}", alpha=0.2)
        ax.set(xscale="log", yscale="log", xlabel="T")
    shared_legend(figure, axes)
    return figure


def _note_convention(figure: Figure, labels: Iterable[str]) -> None:
    if any("[2ρ]" in label for label in labels):
        figure.suptitle(DOUBLED, fontsize="small")
