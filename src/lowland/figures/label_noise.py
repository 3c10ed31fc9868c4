"""Errors over epochs under label noise, as in Figure 12 of Andriushchenko & Flammarion (2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowland.figures.style import in_our_style, panels

Rows = Sequence[Mapping[str, Any]]


@in_our_style
def plot_label_noise(runs: Mapping[str, Sequence[Rows]]) -> Figure:
    """Test error, and training error on the flipped labels, by label of the method.

    Args:
        runs: For each method the rows of its runs, one per seed; the line is their mean, the band goes
            from the lowest to the highest.
    """
    figure, (test, noisy) = panels(["test error (%)", "training error on the wrong labels (%)"], height=3.6)
    for label, seeds in runs.items():
        _band(test, seeds, "test_error", label)
        _band(noisy, seeds, "train_error_noisy", label)
    for ax in (test, noisy):
        ax.set_xlabel("epoch")
        ax.set_ylim(0, 100)
    test.legend()
    count = max(len(seeds) for seeds in runs.values())
    figure.suptitle(f"60 % label noise, {count} seed{'s' if count > 1 else ''}")
    return figure


def _band(ax: Axes, seeds: Sequence[Rows], name: str, label: str) -> None:
    epochs = [row["epoch"] for row in seeds[0] if name in row]
    columns = list(zip(*([100 * row[name] for row in rows if name in row] for rows in seeds), strict=True))
    (line,) = ax.plot(epochs, [sum(column) / len(column) for column in columns], label=label)
    if len(seeds) > 1:
        lowest, highest = [min(c) for c in columns], [max(c) for c in columns]
        ax.fill_between(epochs, lowest, highest, color=line.get_color(), alpha=0.2, linewidth=0)
