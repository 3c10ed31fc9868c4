"""Boards of curves: what the page's script draws.

A board is panels that share one legend and one horizontal axis, and has one or more views of the same runs:
``{"x", "logX", "views": [{"name", "legend": [{"name", "color", "dash"}], "panels": [{"y", "more",
"series": [{"of", "points"}]}]}]}``. ``of`` is the place in the legend; a point is x and y, and of a mean over
seeds the lowest and the highest one too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowland.report.differing import have_seeds, kinds
from lowland.report.gathered import FigureFiles, OwnRun, Row

Point = tuple[float, ...]
COLORS, DASHES = 6, 5
"""Of the page's style."""
MOST, MOST_OF_FIGURE = 1000, 240
"""Points of a curve of own runs, and of a figure, which has a picture too."""
_SHARES = ("_error", "_error_noisy")
_RUNS = {
    "train_loss": "training loss",
    "test_error": "test error (%)",
    "validation_error": "validation error (%)",
    "sharpness_small": "one-step sharpness, small radius",
    "test_loss": "test loss",
    "validation_loss": "validation loss",
    "train_error": "training error (%)",
    "train_error_noisy": "training error on wrong labels (%)",
    "sharpness_rho": "one-step sharpness, training radius",
    "swa_test_error": "test error of averaged weights (%)",
    "lr": "learning rate",
}
_FIRST = 4
"""So many panels are seen at once; the others are opened."""
_FIGURE_AXES = {
    "epoch": ("test_error", "train_loss"),
    "iteration": ("test_loss", "train_loss"),
    "t": ("test_error", "train_loss"),
}


def board_of_runs(runs: Sequence[OwnRun]) -> dict[str, Any] | None:
    """The curves of own runs: by run, and where some differ in the seed only, means over seeds too."""
    drawn = [run for run in runs if run.rows]
    if not drawn:
        return None
    views = [_by_run(drawn)]
    if have_seeds(drawn):
        views.append(_over_seeds(drawn))
    return {"x": "epoch", "logX": False, "views": views}


def _by_run(runs: Sequence[OwnRun]) -> dict[str, Any]:
    groups = list(kinds(runs).values())
    places = {run.name: (k, s) for k, own in enumerate(groups) for s, run in enumerate(own)}
    if len(groups) == 1:  # colours are for the kinds where there are several, and else for the runs
        places = {run.name: (i, 0) for i, run in enumerate(runs)}
    legend = [{"name": _said(run), **look(*places[run.name])} for run in runs]
    return {"name": "by run", "legend": legend, "panels": _panels([[run] for run in runs], _raw)}


def _over_seeds(runs: Sequence[OwnRun]) -> dict[str, Any]:
    groups = kinds(runs)
    counts = {len(own) for own in groups.values()}
    name = f"mean over {counts.pop()} seeds" if len(counts) == 1 else "mean over seeds"
    legend = [
        {"name": f"{told}, {len(own)} {'seeds' if len(own) > 1 else 'seed'}", **look(k, 0)}
        for k, (told, own) in enumerate(groups.items())
    ]
    return {"name": name, "legend": legend, "panels": _panels(list(groups.values()), mean_curve)}


def look(kind: int, seed: int) -> dict[str, int]:
    """A colour for each kind of run, and a dash that differs between seeds and between neighbours."""
    return {"color": kind % COLORS, "dash": (kind + kind // COLORS + seed) % DASHES}


def _said(run: OwnRun) -> str:
    """The name; and from which epoch on the training loss is no number, if it diverged."""
    lost = next((row["epoch"] for row in run.rows if row["train_loss"] is None), None)
    return run.name if lost is None else f"{run.name} (no finite loss from epoch {lost:g} on)"


def _panels(
    groups: Sequence[Sequence[OwnRun]], curve: Callable[[list[list[Point]]], list[Point]]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    of_classes = any("test_error" in row for own in groups for run in own for row in run.rows)
    first = _FIRST if of_classes else 2 * _FIRST
    for name, title in _RUNS.items():
        curves = [curve([values_of(run.rows, name) for run in own]) for own in groups]
        series = [{"of": i, "points": _thinned(points, MOST)} for i, points in enumerate(curves) if points]
        if series:
            found.append({"y": title, "more": len(found) >= first, "series": series})
    return found


def values_of(rows: Sequence[Row], name: str) -> list[Point]:
    """A metric over epochs as ``metrics.jsonl`` has it; errors in per cent."""
    factor = 100.0 if name.endswith(_SHARES) else 1.0
    return [(row["epoch"], factor * row[name]) for row in rows if row.get(name) is not None]


def _raw(curves: list[list[Point]]) -> list[Point]:
    return curves[0]


def mean_curve(curves: list[list[Point]]) -> list[Point]:
    """Mean, lowest and highest at every x that all of them have."""
    at = [{x: y for x, y, *_ in curve} for curve in curves]
    shared = [x for x in at[0] if all(x in values for values in at)]
    columns = [(x, [values[x] for values in at]) for x in shared]
    return [(x, sum(ys) / len(ys), min(ys), max(ys)) for x, ys in columns]


def board_of_figure(figure: FigureFiles) -> dict[str, Any] | None:
    """The curves of a figure, of which the picture has no more: to be read off. Means over its seeds."""
    rows = [present(row) for row in figure.rows if not row.get("published")]
    axis = next((name for name in _FIGURE_AXES if any(name in row for row in rows)), None)
    if axis is None:
        return None
    names = list(dict.fromkeys(_series(row) for row in rows if axis in row))
    seeds = len({row["seed"] for row in rows if "seed" in row})
    of = f", mean over {seeds} seeds" if seeds > 1 else ""
    panels = []
    for name in _FIGURE_AXES[axis]:
        curves = [_figure_curve(rows, axis, name, label) for label in names]
        series = [
            {"of": i, "points": _thinned(points, MOST_OF_FIGURE)} for i, points in enumerate(curves) if points
        ]
        if series:
            panels.append({"y": _RUNS[name] + of, "more": False, "series": series})
    legend = [{"name": label, **look(i, 0)} for i, label in enumerate(names)]
    view = {"name": "", "legend": legend, "panels": panels}
    return {"x": axis, "logX": axis == "iteration", "views": [view]} if panels else None


def present(row: Mapping[str, Any]) -> Row:
    """What a row has."""
    return {name: value for name, value in row.items() if value is not None}


def _figure_curve(rows: Sequence[Row], x: str, y: str, label: str) -> list[Point]:
    points: dict[float, list[float]] = {}
    for row in rows:
        if x in row and math.isfinite(row.get(y, math.nan)) and _series(row) == label:
            points.setdefault(row[x], []).append(row[y])
    return [(at, sum(points[at]) / len(points[at])) for at in sorted(points)]


def _series(row: Row) -> str:
    """What tells curves of one figure apart."""
    if "kind" in row and "→" in str(row["kind"]):
        return str(row["kind"])
    if "run" in row and "method" not in row and "iteration" in row:
        return str(row["run"])
    name = str(row.get("method", "loss"))
    if row.get("rho"):
        name += f", ρ = {row['rho']:g}"
    if row.get("noise"):
        name += f", {100 * row['noise']:g} % wrong labels"
    return f"{name}, fine-tuned" if row.get("offset") else name


def _thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most some points, the last one among them, in as many digits as can be seen."""
    step = max(1, math.ceil(len(points) / most))
    kept = [*points[::step]] + ([points[-1]] if (len(points) - 1) % step else [])
    return [tuple(float(f"{value:.6g}") for value in point) for point in kept]
