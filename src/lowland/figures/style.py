"""Figures in our style, and their files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowland.runs import replace_atomically

_STYLE = Path(__file__).with_name("lowland.mplstyle")


def panels(titles: Sequence[str], *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per title, side by side."""
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(4.2 * len(titles), height))
        axes = [figure.add_subplot(1, len(titles), i + 1) for i in range(len(titles))]
        for ax, title in zip(axes, titles, strict=True):
            ax.set_title(title)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Writes the figure atomically, in the format of the path's suffix."""
    with matplotlib.style.context(_STYLE):
        replace_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))
