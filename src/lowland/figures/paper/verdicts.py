"""Differences between methods, seed by seed, and what can be said from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from lowland.figures.paper.figure import Claim, Rows, Verdict

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its confidence interval.

    Attributes:
        mean: Over seeds.
        half: Half of the 95 % interval, by Student's t; infinite for one seed.
        seeds: How many.
    """

    mean: float
    half: float
    seeds: int

    @classmethod
    def of(cls, a: Rows, b: Rows, value: str = "test_error") -> Difference:
        """Of ``a`` minus ``b`` on the seeds that both have."""
        first, second = ({row["seed"]: row[value] for row in rows} for rows in (a, b))
        found = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
        if len(found) == 0:
            return cls(math.nan, math.inf, 0)
        if len(found) == 1:
            return cls(float(found[0]), math.inf, 1)
        error = found.std(ddof=1) / math.sqrt(len(found))
        return cls(
            float(found.mean()), float(t.ppf(0.5 + 0.5 * _CONFIDENCE, len(found) - 1) * error), len(found)
        )

    @property
    def is_lower(self) -> Verdict:
        """Whether ``a`` is below ``b``, as was published."""
        if not abs(self.mean) > self.half:
            return "cannot be told"
        return "agrees" if self.mean < 0.0 else "disagrees"

    @property
    def is_not_lower(self) -> Verdict:
        """Whether ``a`` does not help, as was published: it is not surely below ``b``."""
        if self.seeds < 2 or not math.isfinite(self.mean):
            return "cannot be told"
        return "disagrees" if self.mean < -self.half else "agrees"

    def __str__(self) -> str:
        interval = "" if math.isinf(self.half) else f" ± {self.half:.2f}"
        return f"{self.mean:+.2f}{interval}"


def compared(
    statement: str,
    published: str,
    a: tuple[str, Rows],
    b: tuple[str, Rows],
    *,
    lower: bool,
    value: str = "test_error",
) -> Claim:
    """The claim that ``a`` is below ``b`` (or is not), from numbers in per cent.

    Args:
        statement: What the paper says.
        published: Its numbers.
        a: What is compared: what it is called, and a row per seed.
        b: With what.
        lower: Whether it was published to be lower.
        value: Which number.
    """
    difference = Difference.of(a[1], b[1], value)
    first, second = (f"{name} {mean_and_spread(rows, value)}" for name, rows in (a, b))
    ours = f"{first}, {second}: difference {difference}"
    known = value == "test_error" and math.isfinite(difference.mean) and math.isfinite(difference.half)
    return Claim(
        statement,
        published,
        ours,
        difference.seeds,
        difference.is_lower if lower else difference.is_not_lower,
        difference.mean if known else None,
        difference.half if known else None,
    )


def mean_and_spread(rows: Rows, value: str) -> str:
    """Mean and standard deviation over seeds."""
    found = [row[value] for row in rows]
    if not found:
        return "-"
    return f"{np.mean(found):.2f}" + (f" ± {np.std(found, ddof=1):.2f}" if len(found) > 1 else "")


def chosen(rows: Rows, method: str, *, by: str = "validation_error") -> tuple[str, Rows]:
    """A method at the radius with the lowest mean validation error, and that radius in its name.

    The test set selects nothing. Radii of which a seed diverged or is missing are left out.
    """
    own = [row for row in rows if row["method"] == method and not row["published"]]
    radii = sorted({row["rho"] for row in own})
    groups = {rho: [row for row in own if row["rho"] == rho] for rho in radii}
    most = max((len(group) for group in groups.values()), default=0)
    whole = {
        rho: group
        for rho, group in groups.items()
        if len(group) == most and all(math.isfinite(row.get(by, math.nan)) for row in group)
    }
    if not whole:
        return method, []
    best = min(whole, key=lambda rho: float(np.mean([row[by] for row in whole[rho]])))
    return (f"{method} (ρ = {best:.3g})" if best > 0.0 else method), whole[best]


def first_network(rows: Rows) -> Rows:
    """The rows of the first network that is ours."""
    ours = [row for row in rows if not row["published"]]
    return [row for row in ours if row["network"] == ours[0]["network"]] if ours else []


def seeds_of(rows: Sequence[dict[str, object]]) -> int:
    """How many seeds there are."""
    return len({row["seed"] for row in rows if row.get("seed") is not None})
