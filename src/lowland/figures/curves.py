"""Loss and errors of one run, or of several, over its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowland.deep.records import MetricsRow
from lowland.figures.style import in_our_style, log_scale_if_wide, panels, save, shared_legend
from lowland.runs import Run

CURVES = "curves.png"
"""The picture of a training run."""
Rows = Sequence[Mapping[str, Any]]
_ERRORS = (
    ("train_error", "train"),
    ("train_error_noisy", "train, flipped labels"),
    ("validation_error", "validation"),
    ("test_error", "test"),
    ("swa_test_error", "test, averaged weights"),
)


@in_our_style
def plot_run(rows: Rows, title: str) -> Figure:
    """Loss, errors and one-step sharpness of one run."""
    figure, (loss, error, sharpness) = panels(["loss", "error (%)", "one-step sharpness"])
    for name, label in (("train_objective", "objective"), ("train_loss", "train"), ("test_loss", "test")):
        _line(loss, rows, name, label)
    for name, label in _ERRORS:
        _line(error, rows, name, label, factor=100)
    for name, label in (("sharpness_small", "small radius"), ("sharpness_rho", "training radius")):
        _line(sharpness, rows, name, label)
    log_scale_if_wide(loss)
    for ax in (loss, error, sharpness):
        ax.set_xlabel("epoch")
        if ax.get_lines():
            ax.legend()
    figure.suptitle(title)
    return figure


@in_our_style
def plot_overlay(runs: Mapping[str, Rows]) -> Figure:
    """Test error and training loss of several runs, by label."""
    figure, (error, loss) = panels(["test error (%)", "training loss"], height=3.6 + 0.2 * len(runs))
    for label, rows in runs.items():
        _line(error, rows, "test_error", label, factor=100)
        _line(loss, rows, "train_loss", label)
    log_scale_if_wide(loss)
    for ax in (error, loss):
        ax.set_xlabel("epoch")
    shared_legend(figure, [error, loss])
    return figure


def draw_curves(directory: Path) -> Path:
    """Writes ``curves.png`` into a run's directory and returns its path."""
    path = directory / CURVES
    save(plot_run(Run.open(directory).rows(MetricsRow), directory.name), path)
    return path


def _line(ax: Any, rows: Rows, name: str, label: str, *, factor: float = 1.0) -> None:
    points = [(row["epoch"], factor * row[name]) for row in rows if row.get(name) is not None]
    if points:
        ax.plot(*zip(*points, strict=True), label=label)
