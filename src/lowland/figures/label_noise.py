"""Test error while training on wrong labels, and at the end over m."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowland.figures.paper.drawing import colors_of, level_with_spread, line_with_spread, methods_of
from lowland.figures.style import in_our_style, panels, shared_legend

Rows = list[dict[str, Any]]
_BESIDE = 0.14


@in_our_style
def plot_label_noise(curves: Rows, ends: Rows, title: str) -> Figure:
    """Means over seeds; bands and bars are one standard deviation to both sides, thin lines single seeds.

    Args:
        curves: A row per run and epoch: ``method``, ``m``, ``seed``, ``epoch``, ``test_error`` in per cent.
        ends: A row per run, its last.
        title: What was trained on.
    """
    figure, (left, right) = panels(["while training", "at the end, over m; grey: single seeds"], height=3.9)
    colors = colors_of(methods_of(ends))
    for name, color in colors.items():
        own = [row for row in curves if row["method"] == name]
        line_with_spread(left, own, "epoch", "test_error", color=color, label=name)
    _over_m(right, ends, colors)
    left.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, 60))
    figure.suptitle(title)
    shared_legend(figure, [left, right])
    return figure


def _over_m(ax: Axes, ends: Rows, colors: dict[str, str]) -> None:
    """Each seed a line over m, the means beside it, and ERM as a level."""
    erm = [row for row in ends if row["method"] == "ERM"]
    climbed = [row for row in ends if row["method"] != "ERM"]
    sizes = sorted({row["m"] for row in climbed}, reverse=True)
    for seed in sorted({row["seed"] for row in climbed}):
        own = {row["m"]: row["test_error"] for row in climbed if row["seed"] == seed}
        ax.plot([sizes.index(m) for m in own], list(own.values()), ".-", color="0.6", linewidth=0.8, zorder=1)
    for place, m in enumerate(sizes):
        errors = [row["test_error"] for row in climbed if row["m"] == m]
        spread = np.std(errors, ddof=1) if len(errors) > 1 else None
        color = colors[f"{m}-SAM"]
        ax.errorbar(place + _BESIDE, np.mean(errors), spread, fmt="o", color=color, capsize=3, markersize=6)
    level_with_spread(ax, erm, "test_error", color=colors["ERM"], label="ERM")
    level = np.mean([row["test_error"] for row in erm])
    ax.annotate("ERM", (0.99, level), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    ax.set_xticks(range(len(sizes)), [str(m) for m in sizes])
    ax.set(xlabel="m, examples that share a perturbation", xlim=(-0.4, len(sizes) - 0.6), ylim=(0, None))
    ax.grid(visible=False, axis="x")
