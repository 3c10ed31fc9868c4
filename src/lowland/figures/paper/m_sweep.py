"""Test error against m, the number of examples that share a perturbation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowland.figures.paper.drawing import level_with_spread, limit_to, line_with_spread, over_radii
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.networks import network, with_seeds
from lowland.figures.paper.trained import final_rows
from lowland.figures.paper.verdicts import chosen, compared, first_network
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sweeps import Store, Task, Training

RADII: dict[Scale, dict[int, tuple[float, ...]]] = {
    "quick": {
        128: (0.05, 0.1, 0.2, 0.4, 0.8),
        16: (0.05, 0.1, 0.2, 0.4),
        4: (0.025, 0.05, 0.1, 0.2),
        1: (0.025, 0.05, 0.1),
    },
    "small": {128: (0.0125, 0.025, 0.05), 4: (0.0125, 0.025, 0.05)},
    "paper": {
        256: (0.025, 0.05, 0.1, 0.2),
        64: (0.025, 0.05, 0.1, 0.2),
        16: (0.025, 0.05, 0.1),
        4: (0.0125, 0.025, 0.05),
    },
}
"""The best radius shrinks with m."""


def runs(scale: Scale) -> list[Task]:
    """ERM, and m-SAM with several radii for every m."""
    # With batch norm, m changes the statistics as well; the paper says that it found the same with both.
    options = {"model": "resnet18_gn", "batch_size": 256} if scale == "paper" else {}
    base = network(scale, **options)
    configs = [base]
    for m, radii in RADII[scale].items():
        m_or_all = None if m == base.batch_size else m
        configs += [dataclasses.replace(base, sam_rho=rho, m=m_or_all) for rho in radii]
    return [Training(config) for config in with_seeds(configs, scale)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Final errors."""
    return final_rows(tasks, store)


@in_our_style
def plot(rows: Rows) -> Figure:
    """Test error over the radius for every m, and over m at the radius that validation chose."""
    figure, (left, right) = panels(["every radius", "radius chosen on validation"], height=4.0)
    sizes = sizes_of(rows)
    erm = [row for row in rows if row["method"] == "ERM"]
    for i, m in enumerate(sizes):
        own = [row for row in rows if row["method"] == f"{m}-SAM"]
        line_with_spread(left, own, "rho", "test_error", color=f"C{i}", label=f"{m}-SAM")
    best = [row for m in sizes for row in chosen(rows, f"{m}-SAM")[1]]
    line_with_spread(right, best, "m", "test_error", color="C0", label="m-SAM, radius by validation")
    for ax in (left, right):
        level_with_spread(ax, erm, "test_error", color="0.3", label="ERM")
        limit_to(ax, [row["test_error"] for row in rows])
    over_radii(left)
    left.set_ylabel("test error (%)")
    right.set(xscale="log", xlabel="m")
    _whole_numbers(right, sizes)
    shared_legend(figure, [left, right])
    return figure


def _whole_numbers(ax: Axes, sizes: Sequence[int]) -> None:
    ax.set_xticks(sizes, [str(m) for m in sizes])
    ax.minorticks_off()


def sizes_of(rows: Rows) -> list[int]:
    """Group sizes of SAM, falling."""
    return sorted({row["m"] for row in rows if row["method"] not in {"ERM"}}, reverse=True)


def claims(rows: Rows) -> list[Claim]:
    """Small m helps, and more than large m does."""
    own = first_network(rows)
    sizes = sizes_of(own)
    if len(sizes) < 2:
        return []
    errors = {m: np.mean([row["test_error"] for row in chosen(own, f"{m}-SAM")[1]]) for m in sizes}
    smaller = [
        compared(
            f"{m}-SAM generalizes better than {sizes[0]}-SAM",
            "lower m is better (no numbers can be had); m = 4: 4.78 %, m = 256: 5.29 % in the figure of "
            "ascent steps",
            chosen(own, f"{m}-SAM"),
            chosen(own, f"{sizes[0]}-SAM"),
            lower=True,
        )
        for m in sizes[1:]
        if np.isfinite(errors[m])
    ]
    against_erm = compared(
        f"{sizes[0]}-SAM generalizes better than ERM",
        "5.29 % against 6.36 % (m = 256, figure of ascent steps)",
        chosen(own, f"{sizes[0]}-SAM"),
        chosen(own, "ERM"),
        lower=True,
    )
    return [against_erm, *smaller]


FIGURE = PaperFigure(
    "m-sweep",
    "Test error against m, the number of examples that share a perturbation",
    "section 4.1",
    runs,
    data,
    plot,
    claims,
    "The paper's own figure could not be read; its values are known at m = 4 and 256 from the figure of "
    "ascent steps only. Every m has its own radii, and the radius is chosen on validation.",
    short="Section 4.1: m",
)
