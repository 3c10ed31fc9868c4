"""Loss and errors of one run, or of several, over its epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowland.deep.records import MetricsRow
from lowland.figures.ends import label_ends, show_ends
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


_LOSSES = (("train_objective", "objective"), ("train_loss", "train"), ("test_loss", "test"))
_LOSSES_OF_NUMBERS = (*_LOSSES[:2], ("validation_loss", "validation"), _LOSSES[2])
_SHARPNESS = (("sharpness_small", "small radius"), ("sharpness_rho", "training radius"))
_PLAIN = {"marker": "o"}
_MARKERS = "osD^vPX*"
_STYLES = ("-", "--", ":", "-.")


@in_our_style
def plot_run(rows: Rows, title: str) -> Figure:
    """Loss, errors if targets are classes, and one-step sharpness of one run, with their last values."""
    shown: list[tuple[str, Sequence[tuple[str, str]], float, str]]
    shown = [("loss", _LOSSES if _has_errors(rows) else _LOSSES_OF_NUMBERS, 1.0, ".3g")]
    shown += [("error (%)", _ERRORS, 100.0, ".2f")] if _has_errors(rows) else []
    shown += [("one-step sharpness", _SHARPNESS, 1.0, ".3g")]
    figure, axes = panels([head for head, *_ in shown])
    for ax, (head, lines, factor, spec) in zip(axes, shown, strict=True):
        for name, label in lines:
            _line(ax, rows, name, label, factor=factor)
        if head == "loss":
            log_scale_if_wide(ax)
        show_ends(ax, spec) if lines is not _SHARPNESS else label_ends(ax, spec)
        ax.set_xlabel("epoch")
        if ax.get_lines():
            ax.legend(loc="best")
    figure.suptitle(title)
    return figure


@in_our_style
def plot_overlay(runs: Mapping[str, Rows]) -> Figure:
    """Test error, or loss where targets are numbers, and training loss of several runs, by label.

    Runs are in the order of their last values on the test set, the lowest first.
    """
    of_classes = {label: rows for label, rows in runs.items() if _has_errors(rows)}
    of_numbers = {label: rows for label, rows in runs.items() if label not in of_classes}
    shown: list[tuple[str, str, Mapping[str, Rows], float, str]]
    shown = [("test error (%)", "test_error", of_classes, 100.0, ".2f")] if of_classes else []
    shown += [("test loss", "test_loss", of_numbers, 1.0, ".4g")] if of_numbers else []
    shown += [("training loss", "train_loss", runs, 1.0, ".3g")]
    figure, axes = panels([head for head, *_ in shown], height=3.6 + 0.2 * len(runs))
    looks = dict(
        zip(_by_end(of_classes, "test_error") + _by_end(of_numbers, "test_loss"), _looks(), strict=False)
    )
    for ax, (_, name, some, factor, spec) in zip(axes, shown, strict=True):
        for label, look in looks.items():
            _line(ax, some.get(label, ()), name, label, factor=factor, look=look)
        if name != "test_error":
            log_scale_if_wide(ax)
        show_ends(ax, spec)
        ax.set_xlabel("epoch")
    shared_legend(figure, axes)
    return figure


def _has_errors(rows: Rows) -> bool:
    """Whether targets are classes; so it is said of a run without a row."""
    return not rows or any("test_error" in row for row in rows)


def _by_end(runs: Mapping[str, Rows], name: str) -> list[str]:
    """Labels by the last value of each run, the lowest first."""
    ends = {label: [row[name] for row in rows if row.get(name) is not None] for label, rows in runs.items()}
    return sorted(runs, key=lambda label: ends[label][-1] if ends[label] else math.inf)


def _looks() -> Iterator[dict[str, Any]]:
    """Looks that are told apart without colours too: a sign at the end, and another line after eight."""
    for style in itertools.cycle(_STYLES):
        for index, marker in enumerate(_MARKERS):
            yield {"color": f"C{index}", "linestyle": style, "marker": marker}


def draw_curves(directory: Path) -> Path:
    """Writes ``curves.png`` into a run's directory and returns its path."""
    path = directory / CURVES
    save(plot_run(Run.open(directory).rows(MetricsRow), directory.name), path)
    return path


def _line(
    ax: Any, rows: Rows, name: str, label: str, *, factor: float = 1.0, look: Mapping[str, Any] = _PLAIN
) -> None:
    points = [(row["epoch"], factor * row[name]) for row in rows if row.get(name) is not None]
    if points:
        ax.plot(*zip(*points, strict=True), label=label, **look, markersize=4, markevery=[-1])
