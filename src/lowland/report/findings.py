"""What was found, in numbers: verdicts, the largest effects, and which pictures show most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lowland.figures.paper import FIGURES, Verdict
from lowland.report.gathered import FigureFiles

VERDICTS: dict[Verdict, tuple[str, str]] = {
    "agrees": ("✓", "agree with the paper"),
    "disagrees": ("✗", "do not agree"),
    "cannot be told": ("?", "cannot be told from these runs"),
    "no published number": ("–", "have no published number"),
}
"""Each verdict's mark, and what is said of claims that have it."""


@dataclass(frozen=True)
class Effect:
    """A difference of test errors whose 95 % confidence interval leaves out 0.

    Attributes:
        figure: Which figure's, by its place.
        claim: The claim that it is about.
        difference: In percentage points.
        half: Half of the interval.
    """

    figure: int
    claim: Mapping[str, Any]
    difference: float
    half: float

    @property
    def clarity(self) -> float:
        """How many half intervals lie between it and 0."""
        return abs(self.difference) / max(self.half, 1e-12)


def counts(figures: Sequence[FigureFiles]) -> dict[Verdict, int]:
    """How many claims have each verdict."""
    verdicts = [claim["verdict"] for figure in figures for claim in figure.about["claims"]]
    return {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)}


def effects(figures: Sequence[FigureFiles], most: int = 5) -> list[Effect]:
    """The largest effects, one from each figure; what two figures share, because runs do, counts once."""
    found: list[Effect] = []
    for i in range(len(figures)):
        found += sorted(_effects_of(figures, i), key=lambda e: -abs(e.difference))[:1]
    once = {(effect.difference, effect.half): effect for effect in reversed(found)}
    return sorted(once.values(), key=lambda effect: -abs(effect.difference))[:most]


def highlights(figures: Sequence[FigureFiles], most: int = 3) -> list[int]:
    """The figures whose pictures open the report, by their places.

    First those with the clearest effect, measured in half intervals; then those with most claims that are
    settled, whether they agree or not.
    """

    def rank(i: int) -> tuple[float, int]:
        clearest = max((effect.clarity for effect in _effects_of(figures, i)), default=0.0)
        settled = sum(claim["verdict"] in ("agrees", "disagrees") for claim in figures[i].about["claims"])
        return -clearest, -settled

    once: dict[str, int] = {}
    for i in sorted(range(len(figures)), key=rank):
        once.setdefault(figures[i].about["name"], i)
    return [*once.values()][:most]


def _effects_of(figures: Sequence[FigureFiles], i: int) -> list[Effect]:
    return [
        Effect(i, claim, claim["difference"], claim["half"])
        for claim in _with_differences(figures[i])
        if claim.get("difference") is not None and abs(claim["difference"]) > claim["half"]
    ]


def _with_differences(figure: FigureFiles) -> list[Mapping[str, Any]]:
    """The claims; what was written before they had their differences as numbers is judged again."""
    stored: list[Mapping[str, Any]] = list(figure.about["claims"])
    if all("difference" in claim for claim in stored) or figure.about["name"] not in FIGURES:
        return stored
    again = {claim.statement: claim for claim in FIGURES[figure.about["name"]].claims(figure.rows)}
    return [
        {**claim, "difference": again[claim["statement"]].difference, "half": again[claim["statement"]].half}
        if claim["statement"] in again and "difference" not in claim
        else claim
        for claim in stored
    ]
