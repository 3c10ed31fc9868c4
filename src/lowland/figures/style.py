"""Figures in our style, and their files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lowland.runs.atomic import replace_atomically

_TOO_LARGE = 1e30
_LETTERS_PER_INCH, _HANDLE = 14, 7
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_STYLE = Path(__file__).with_name("lowland.mplstyle")


in_our_style = matplotlib.style.context(_STYLE)
"""Decorates the functions that draw."""


def panels(titles: Sequence[str], *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per title, side by side."""
    figure = Figure(figsize=(4.2 * len(titles), height))
    axes = [figure.add_subplot(1, len(titles), i + 1) for i in range(len(titles))]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    return figure, axes


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend of all panels, below, in as many columns as fit."""
    found: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    longest = max(map(len, found), default=1)
    columns = int(_LETTERS_PER_INCH * figure.get_figwidth() / (longest + _HANDLE))
    ncols = max(1, min(4, len(found), columns))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=ncols)


def log_scale_if_wide(ax: Axes) -> None:
    """A logarithmic scale if what is drawn spans more than a factor of ten."""
    lowest, highest = ax.dataLim.intervaly
    if 0 < 10 * lowest < highest:
        ax.set_yscale("log")


def drawable(losses: ArrayLike) -> np.ndarray:
    """NaN for what is too large to be drawn: a loss on its way to infinity."""
    values = np.asarray(losses, dtype=np.float64)
    return np.where(values < _TOO_LARGE, values, np.nan)


@in_our_style
def save(figure: Figure, path: Path) -> None:
    """Writes the figure atomically, in the format of the path's suffix; drawn again, it is the same bytes."""
    how: dict[str, Any] = {"format": path.suffix[1:], "metadata": _UNDATED.get(path.suffix)}
    replace_atomically(path, lambda temporary: figure.savefig(temporary, **how))


@in_our_style
def svg_of(figure: Figure) -> bytes:
    """The figure as SVG, whose letters are text: smaller than :func:`save` makes it, and to be searched."""
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(written, format="svg", metadata=_UNDATED[".svg"])
    return written.getvalue()


def save_all(figure: Figure, stem: Path, suffixes: Sequence[str] = (".png", ".pdf")) -> None:
    """Writes the figure in several formats; ``stem`` is their path without a suffix."""
    for suffix in suffixes:
        save(figure, stem.with_name(stem.name + suffix))
