"""The picture of a figure: as it was written, or drawn from its data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowland.errors import InputError
from lowland.figures.paper import FIGURES
from lowland.figures.style import svg_of
from lowland.figures.sweep import plot_sweep
from lowland.runs import read_json
from lowland.sweeps import points
from lowland.sweeps.study import FILE, SweepRecord

Row = dict[str, Any]


def picture(path: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> bytes:
    """The SVG in the directory of a figure or, where there is none, one drawn from its data.

    Args:
        path: The directory.
        about: Its ``figure.json``.
        rows: Its data.

    Raises:
        InputError: If there is no picture, and the data are not of a figure that is known here.
    """
    written = path / "figure.svg"
    if written.is_file():
        return written.read_bytes()
    if about["scale"] != "" and about["name"] in FIGURES:
        return svg_of(FIGURES[about["name"]].plot([dict(row) for row in rows]))
    if (path / FILE).is_file() and rows:
        return svg_of(_sweep(read_json(path / FILE, SweepRecord), rows))
    raise InputError(
        f"{path} must have a figure.svg, or data of a figure that lowland figure --list names, got "
        f"{about['name']}."
    )


def _sweep(record: SweepRecord, rows: Sequence[Row]) -> Any:
    """The swept options are the columns before the seed; see :meth:`lowland.sweeps.Study.rows`."""
    names = list(rows[0])
    usual = "test_error" if "validation_error" in names else "test_loss"
    return plot_sweep(points(rows, names[: names.index("seed")]), record["metric"] or usual)


_DECIMALS = re.compile(r"(\.\d\d)\d+")
_SHAPES = re.compile(r'\b(?:d|x|y|x1|x2|y1|y2|transform)="[^"]*"')
_SCALED = re.compile(r"scale\([^)]*\)|matrix\([^)]*\)")
_SPACE = re.compile(r"\s+")
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def data_url(svg: bytes) -> str:
    """A picture as an address that holds it, to stand between single quotes of HTML as it is.

    Coordinates are rounded to hundredths of a point, which no screen shows: that, and text in place of
    base64, makes the page a good deal smaller.
    """
    text = _METADATA.sub("", svg.decode("utf-8", "replace"))
    text = _SHAPES.sub(_rounded, _SPACE.sub(" ", text))
    for character in "%#<>'&":
        text = text.replace(character, f"%{ord(character):02X}")
    return "data:image/svg+xml," + text


def _rounded(found: re.Match[str]) -> str:
    shape = found.group()
    return shape if _SCALED.search(shape) else _DECIMALS.sub(r"\1", shape)
