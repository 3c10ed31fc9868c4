"""One-hidden-layer ReLU networks: the fits of all seeds, and their losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowland.figures.seeds import by_label
from lowland.figures.style import in_our_style, panels
from lowland.relu import interpolant_variation
from lowland.relu.experiment import Outcome


@in_our_style
def plot_fits(outcomes: Sequence[Outcome]) -> Figure:
    """The functions that all seeds found, a panel per method, over the points and the lines between them.

    The numbers are total variations of the slope on the data range, mean over seeds.
    """
    groups = by_label(outcomes)
    figure, axes = panels(list(groups))
    problem = outcomes[0].problem
    x, order = problem.x[:, 0], np.argsort(problem.x[:, 0])
    grid = np.linspace(x.min() - 0.15, x.max() + 0.15, 2_000)
    for ax, runs in zip(axes, groups.values(), strict=True):
        for outcome in runs:
            ax.plot(grid, outcome.result.network(grid[:, None]), linewidth=1.0, alpha=0.8)
        ax.plot(x[order], problem.y[order], color="0.5", linestyle=":", linewidth=1.0)
        ax.plot(x, problem.y, "o", color="black", markersize=4)
        variations = [row["slope_variation"] for row in map(Outcome.row, runs) if "slope_variation" in row]
        if variations:
            least = interpolant_variation(problem)
            ax.set_xlabel(f"slope varies by {np.mean(variations):.0f} (straight lines: {least:.0f})")
        margin = 0.6 * np.ptp(problem.y)
        ax.set_ylim(problem.y.min() - margin, problem.y.max() + margin)
    return figure


@in_our_style
def plot_losses(outcomes: Sequence[Outcome]) -> Figure:
    """The loss at the weights and at the perturbed ones over iterations, a thin line per seed."""
    figure, axes = panels(["loss", "loss at the perturbed weights"])
    for ax, name in zip(axes, ("loss", "perturbed_loss"), strict=True):
        for number, (label, runs) in enumerate(by_label(outcomes).items()):
            for i, outcome in enumerate(runs):
                result = outcome.result
                shown = label if i == 0 else None
                ax.plot(
                    result.iterations + 1, getattr(result, name), f"C{number}", linewidth=0.8, label=shown
                )
        ax.set(xscale="log", yscale="log", xlabel="iteration")
    axes[0].legend()
    return figure
