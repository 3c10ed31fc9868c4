"""What a figure's files hold: the keys that are read; there may be others."""

from typing import Any, TypedDict

from lowland.figures.paper.figure import Verdict


class _Claim(TypedDict):
    statement: str
    published: str
    ours: str
    seeds: int
    verdict: Verdict


class ClaimRecord(_Claim, total=False):
    """What the paper's figure shows, beside ours; the numbers of a difference came later than the rest."""

    difference: float | None
    half: float | None


class _FigureRun(TypedDict):
    name: str
    config: dict[str, Any]
    seconds: float


class FigureRun(_FigureRun, total=False):
    """A run that a figure was made of."""

    numbers: dict[str, float | None]


class FigureRecord(TypedDict):
    """``figure.json``."""

    name: str
    title: str
    source: str
    scale: str
    command: str
    caption: str
    note: str
    claims: list[ClaimRecord]
    seconds: float
    missing: dict[str, str]
    runs: list[FigureRun]
