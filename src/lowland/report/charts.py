"""Curves that can be read off with the pointer or the keyboard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lowland.report.gathered import FigureFiles, Row

_POINTS = 240
_AXES = {
    "epoch": ("test_error", "train_loss"),
    "iteration": ("test_loss", "train_loss"),
    "t": ("test_error", "train_loss"),
}
_TITLES = {
    "test_error": "test error (%)",
    "train_loss": "training loss",
    "test_loss": "test loss",
    "epoch": "epoch",
    "iteration": "iteration",
    "t": "t",
}


def charts(figure: FigureFiles) -> list[dict[str, Any]]:
    """The curves of a figure, means over seeds: what the page's script draws.

    Each has ``x``, ``y`` and ``title``, whether an axis is logarithmic, and ``series``: a name and points.
    """
    rows = [row for row in figure.rows if not row.get("published")]
    axis = next((name for name in _AXES if any(name in row for row in rows)), None)
    if axis is None:
        return []
    return [chart for name in _AXES[axis] if (chart := _chart(rows, axis, name)) is not None]


def _chart(rows: Sequence[Row], x: str, y: str) -> dict[str, Any] | None:
    points: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        value = row.get(y)
        if x in row and value is not None and math.isfinite(value):
            points.setdefault(_series(row), {}).setdefault(row[x], []).append(value)
    if not points:
        return None
    curves = {name: _thinned(curve) for name, curve in points.items()}
    values = [value for curve in curves.values() for _, value in curve if value > 0]
    wide = y.endswith("loss") and len(values) > 1 and max(values) > 10 * min(values)
    series = [{"name": name, "points": curve} for name, curve in curves.items()]
    return {"x": _TITLES[x], "y": _TITLES[y], "logX": x == "iteration", "logY": wide, "series": series}


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


def _thinned(curve: dict[float, list[float]]) -> list[tuple[float, float]]:
    at = sorted(curve)
    step = max(1, math.ceil(len(at) / _POINTS))
    kept = at[::step] + ([at[-1]] if (len(at) - 1) % step else [])
    return [(float(f"{x:.6g}"), float(f"{sum(curve[x]) / len(curve[x]):.5g}")) for x in kept]
