"""Curves whose ends can be read: axes of the later part, and the last value of each beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

_DWARFS = 4.0
"""A beginning is cut off where all of a panel spans so many times what its second half spans."""
_PAD = 0.08
_LINE = 0.135
"""Inches from one value to the next."""
_DECADES = 2.0


def show_ends(ax: Axes, spec: str) -> None:
    """Cuts off a beginning that dwarfs the rest, and writes the last value of each line at its end.

    Args:
        ax: The panel; what is drawn is drawn, and its scale is set.
        spec: How values are written.
    """
    if ax.get_yscale() == "log":
        _plain_numbers(ax)
    else:
        cut_beginning(ax)
    label_ends(ax, spec)


def cut_beginning(ax: Axes) -> None:
    """Limits the axis to what the second half of each line spans, if more dwarfs it, and says so.

    A line that ends far above the others is not waited for either. One line alone is shown whole.
    """
    lines = [(x, y) for x, y in map(_points, ax.get_lines()) if len(x)]
    if len(lines) < 2:
        return
    spans = _without_far(sorted(_later(x, y) for x, y in lines))
    low, high = spans[0][0], max(top for _, top in spans)
    lowest, highest = min(y.min() for _, y in lines), max(y.max() for _, y in lines)
    if high == low or highest - lowest <= _DWARFS * (high - low):
        return
    pad = _PAD * (high - low)
    ax.set_ylim(low - pad, high + pad)
    if highest > high + pad:
        ax.set_ylabel(f"cut above: up to {highest:.3g}")
    elif lowest < low - pad:
        ax.set_ylabel(f"cut below: from {lowest:.3g}")


def _later(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value of the second half of a line."""
    values = [*y[x > (x[0] + x[-1]) / 2], y[-1]]
    return float(min(values)), float(max(values))


def _without_far(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the topmost one, as long as it makes the rest small and two are left."""
    while len(spans) > 2:
        *rest, _ = spans
        low, high = spans[0][0], max(top for _, top in rest)
        if max(top for _, top in spans) - low <= _DWARFS * (high - low):
            break
        spans = rest
    return spans


def label_ends(ax: Axes, spec: str) -> None:
    """Writes the last value of each line to the right of the panel, none over another.

    That of a line that ends above the panel has an arrow, and its colour.
    """
    lines = [line for line in ax.get_lines() if len(_points(line)[0])]
    ends = [(x[-1], y[-1]) for x, y in map(_points, lines)]
    ax.autoscale_view()
    heights = [float(ax.transAxes.inverted().transform(ax.transData.transform(end))[1]) for end in ends]
    figure = ax.get_figure(root=True)
    room = 0.6 * figure.get_figheight() if figure is not None else 1.0
    inside = [min(max(height, 0.0), 1.0) for height in heights]
    for line, end, height, place in zip(lines, ends, heights, apart(inside, _LINE / room), strict=True):
        above = height > 1.0
        arrow = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8, "shrinkB": 3}
        ax.annotate(
            f"{end[1]:{spec}}{' ↑' if above else ''}",
            end,
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=line.get_color() if above else None,
            annotation_clip=False,
            arrowprops=None if above else arrow,
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1] at least ``gap`` from one another, in the same order, about where they were.

    Example:
        >>> apart([0.0, 0.5, 0.5, 1.0], 0.25)
        [0.0, 0.375, 0.625, 1.0]
    """
    blocks: list[list[int]] = []  # neighbours that touch, about the mean of where they would be
    middles: list[float] = []
    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        block, middle = [index], heights[index]
        while middles and middle - middles[-1] < gap * (len(block) + len(blocks[-1])) / 2:
            block = blocks.pop() + block
            middles.pop()
            middle = _inside(sum(heights[i] for i in block) / len(block), gap * (len(block) - 1) / 2)
        blocks.append(block)
        middles.append(middle)
    placed = dict.fromkeys(range(len(heights)), 0.0)
    for block, middle in zip(blocks, middles, strict=True):
        for place, index in enumerate(block):
            placed[index] = middle + gap * (place - (len(block) - 1) / 2)
    return [placed[index] for index in range(len(heights))]


def _inside(middle: float, half: float) -> float:
    """Where a block of that half height stays in [0, 1], if it can."""
    return min(max(middle, half), 1.0 - half) if half <= 0.5 else 0.5


def _points(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line that are numbers."""
    x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data())
    return x[np.isfinite(y)], y[np.isfinite(y)]


def _plain_numbers(ax: Axes) -> None:
    """Numbers without powers of ten on a logarithmic axis of few decades."""
    low, high = ax.get_ylim()
    if low > 0 and np.log10(high / low) < _DECADES:
        for each in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            each(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))
