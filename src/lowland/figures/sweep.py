"""A metric of a sweep's runs over the options that were swept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sweeps import RADII, Point, mean_and_deviation
from lowland.sweeps.study import text_of


@in_our_style
def plot_sweep(points: Sequence[Point], metric: str) -> Figure:
    """Mean and standard deviation over seeds; along the axis the option with the most values.

    A radius is preferred, then a number. Values stand side by side at equal distances, so that 0 and options
    that are no numbers have a place. The other options tell lines apart.
    """
    names = list(points[0].options) if points else []
    along = max(names, key=lambda name: _rank(name, points), default=None)
    figure, (ax,) = panels([""], height=3.8)
    figure.set_figwidth(6.0)
    values = _values(along, points)
    labels = list(dict.fromkeys(_label(point, along) for point in points))
    beside = min(0.05, 0.3 / len(labels)) if labels else 0.0  # so that no bar hides another
    for k, label in enumerate(labels):
        own = [point for point in points if _label(point, along) == label]
        found = {values.index(_value(point, along)): mean_and_deviation(point.values) for point in own}
        means = [_shown(found[place][0], metric) for place in sorted(found)]
        spreads = [_shown(found[place][1] or 0.0, metric) for place in sorted(found)]
        places = [place + beside * (k - (len(labels) - 1) / 2) for place in sorted(found)]
        ax.errorbar(places, means, spreads, marker="o", capsize=3, label=label or None)
    ax.set_xticks(range(len(values)), [_tick(value, along, points) for value in values])
    ax.margins(x=0.08)
    ax.set(xlabel=along or "", ylabel=metric.replace("_", " ") + (" (%)" if is_share(metric) else ""))
    if len(labels) > 1:
        shared_legend(figure, [ax])
    return figure


def is_share(metric: str) -> bool:
    """Whether a metric is shown in per cent."""
    return metric.endswith(("_error", "_error_noisy"))


def _rank(name: str, points: Sequence[Point]) -> tuple[bool, bool, int]:
    values = {point.options[name] for point in points}
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values - {None})
    return name in RADII, numbers, len(values)


def _values(along: str | None, points: Sequence[Point]) -> list[Any]:
    found = list(dict.fromkeys(_value(point, along) for point in points))
    numbers = [v for v in found if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return sorted(numbers) + [v for v in found if v not in numbers]


def _value(point: Point, along: str | None) -> Any:
    return None if along is None else point.options[along]


def _tick(value: Any, along: str | None, points: Sequence[Point]) -> str:
    there = [point for point in points if _value(point, along) == value]
    is_erm = along in RADII and all(point.is_erm for point in there)
    return "0 (ERM)" if is_erm else text_of(value)


def _label(point: Point, along: str | None) -> str:
    """Of ERM without a dash for each option that only SAM reads."""
    names = [name for name in point.options if name != along]
    if point.is_erm and along in RADII and names:
        said = [name for name in names if name not in RADII and point.options[name] is not None]
        return ", ".join(["ERM", *(f"{name} {text_of(point.options[name])}" for name in said)])
    return ", ".join(f"{name} {text_of(point.options[name])}" for name in names)


def _shown(value: float, metric: str) -> float:
    return 100.0 * value if is_share(metric) else value
