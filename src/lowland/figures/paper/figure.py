"""What a figure of the paper is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from matplotlib.figure import Figure

from lowland.sweeps import Store, Task

Scale = Literal["quick", "small", "paper"]
"""How much is run: small networks, larger ones, or the paper's."""
SCALES: tuple[Scale, ...] = get_args(Scale)
"""All of them, the smallest first."""
Row = dict[str, Any]
Rows = list[Row]
"""What is drawn: a dictionary of plain values each."""
Verdict = Literal["agrees", "disagrees", "cannot be told", "no published number"]
"""Whether a claim of the paper is seen here."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper's figure shows, and what is seen here.

    Attributes:
        statement: What the paper says.
        published: Its numbers, or where they cannot be had, that.
        ours: Ours: mean and spread over seeds.
        seeds: How many.
        verdict: Whether the two say the same.
        difference: Of two test errors, in percentage points, where that is what is compared over seeds.
        half: Half of its 95 % confidence interval.

    Example:
        >>> from lowland.figures.paper import Claim
        >>> claim = Claim("SAM generalizes better", "3.9 against 4.6 %", "4.1 against 4.7 %", 5, "agrees")
        >>> claim.verdict
        'agrees'
    """

    statement: str
    published: str
    ours: str
    seeds: int
    verdict: Verdict
    difference: float | None = None
    half: float | None = None


@dataclass(frozen=True)
class PaperFigure:
    """A figure: the runs that it needs, its data, and how it is drawn.

    Attributes:
        name: At the command line.
        title: What it shows.
        source: Where the paper has it.
        runs: The tasks of a scale, nothing hidden.
        data: The rows that are drawn, from the tasks that are finished; published values are rows too.
        plot: Draws rows; a pure function.
        claims: What the paper's figure shows, beside what the rows say.
        note: What is different here, and what cannot be known.
        short: Its place in the paper and its subject, as a list of figures has it.

    Example:
        >>> from lowland.figures.paper import FIGURES
        >>> figure = FIGURES["theorem2"]
        >>> figure.name, len(figure.runs("quick")) > 0
        ('theorem2', True)
    """

    name: str
    title: str
    source: str
    runs: Callable[[Scale], list[Task]]
    data: Callable[[Sequence[Task], Store], Rows]
    plot: Callable[[Rows], Figure]
    claims: Callable[[Rows], list[Claim]]
    note: str = ""
    short: str = ""
