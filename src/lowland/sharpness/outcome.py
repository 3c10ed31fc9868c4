"""What climbs have found, as measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.grouped import Grouped
from lowland.sharpness.measurement import Measurement, dtype_name, mean_over_groups
from lowland.sharpness.objective import Params, as_given, listed_params
from lowland.sharpness.trials import Found, Trial

Rises = Float[Tensor, " groups"]


@dataclass(frozen=True)
class Outcome:
    """What each trial has found.

    Attributes:
        params: The parameters that moved.
        groups: The groups.
        found: By the search that counts.
        longer: By one that takes more steps, if there was any.
    """

    params: Params
    groups: Grouped
    found: Mapping[Trial, Found]
    longer: Mapping[Trial, Found]

    def of(self, rho: float, settings: Mapping[str, Any]) -> Measurement:
        """The sharpness within a radius; points that were found for smaller ones count."""
        best = self._highest([self.found], rho)
        value, stderr = self._mean(_rises(best))
        return Measurement(
            "worst case",
            value,
            stderr,
            sum(sizes_of(self.groups)),
            dtype_name(listed_params(self.params)),
            settings,
            _rises(best),
            {name: self._mean(_rises(best, name))[0] for name in best[0].measured[0].extras},
            self._also(rho),
            self._points(best),
        )

    def _also(self, rho: float) -> dict[str, Any]:
        """The value of each start, and that of the longer search."""
        starts = sorted({trial.start for trial in self.found})
        also: dict[str, Any] = {}
        if len(starts) > 1:
            alone = [{t: found for t, found in self.found.items() if t.start == start} for start in starts]
            also["starts"] = [self._mean(_rises(self._highest([one], rho)))[0] for one in alone]
        if self.longer:
            also["longer"] = self._mean(_rises(self._highest([self.found, self.longer], rho)))[0]
        return also

    def _highest(self, climbs: Sequence[Mapping[Trial, Found]], rho: float) -> list[Found]:
        """The highest that was found for each group."""
        best: dict[int, Found] = {}
        for trial, found in chain.from_iterable(one.items() for one in climbs):
            if trial.rho <= rho and not _is_beaten(found, best.get(trial.group)):
                best[trial.group] = found
        return [best[group] for group in range(len(self.groups))]

    def _mean(self, rises: Rises) -> tuple[float, float]:
        return mean_over_groups(rises, torch.tensor(sizes_of(self.groups), dtype=torch.float64))

    def _points(self, best: Sequence[Found]) -> Params | None:
        """The perturbations, as the parameters were given, a row for each group."""
        if any(one.point is None for one in best):
            return None
        stacked = [torch.stack(rows) for rows in zip(*(one.point or [] for one in best), strict=True)]
        return as_given(self.params, stacked)


def sizes_of(groups: Grouped) -> list[int]:
    """Examples in each group."""
    return [groups.size(i) or 1 for i in range(len(groups))]


def _is_beaten(found: Found, by: Found | None) -> bool:
    return by is not None and not float(found.best.losses) > float(by.best.losses)


def _rises(found: Sequence[Found], name: str | None = None) -> Rises:
    """Of the loss, or of what the loss returned beside it."""
    pairs = [one.measured for one in found]
    both = [[v.losses if name is None else v.extras[name] for v in pair] for pair in pairs]
    return torch.stack([(after - before).reshape(()) for before, after in both])
