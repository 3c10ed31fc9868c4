"""Which groups of a call are run at once, and which one after the other."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch

from lowland.sam.arguments import Engine
from lowland.sam.ascent import StartingAscent
from lowland.sam.batch import MicroBatches
from lowland.sam.batched.climb import GroupsClimber, NotFinite
from lowland.sam.batched.cost import around, machine, seconds
from lowland.sam.batched.gradient import BatchedGradient
from lowland.sam.batched.grouped import Grouped
from lowland.sam.batched.memory import groups_at_once
from lowland.sam.batched.probe import probe
from lowland.sam.batched.refused import Unbatchable
from lowland.sam.batched.settled import Verdict, loss_key, verdicts_of
from lowland.sam.climb import Climber
from lowland.sam.group import Source, run_group
from lowland.sam.passes import Passes
from lowland.sam.precision import is_half
from lowland.sam.total import Total


@dataclass(frozen=True)
class Engines:
    """Runs the groups of a call by either engine, and takes what they find into ``total``.

    Attributes:
        passes: The loss and its policies.
        climber: The climb.
        total: The means over groups.
        groups: The groups of the batch.
        sources: The groups that these climb on, from the start again where there are fewer; all examples
            as one group, in parts; ``None`` for the groups themselves.
        engine: Which engine.
        max_memory: Bytes that running groups at once may take.
        gradient_at_weights: Whether the gradient at the weights is asked for.
    """

    passes: Passes
    climber: Climber
    total: Total
    groups: Grouped
    sources: Grouped | MicroBatches | None
    engine: Engine
    max_memory: int | None
    gradient_at_weights: bool

    def run(self) -> None:
        """Runs all groups, in order; those of weight 0 are left out."""
        weighed = [i for i in range(len(self.groups)) if self._mass(i) > 0.0]
        if self.engine == "loop" or (self.engine == "auto" and self._too_small(len(weighed))):
            self._loop(weighed)
            return
        reason = self._reason_against()
        if reason is not None:
            self._fall_back(weighed, Unbatchable(reason), ("option", reason))
            return
        runs = [list(run) for _, run in groupby(weighed, key=self._alike)]
        for run in runs:
            ragged = len(run) == 1 and len(runs) > 1
            if self._alike(run[0]) is None:
                self._fall_back(run, Unbatchable("a group in several MicroBatches"), ("parts",))
            elif ragged:
                self._loop(run)
            else:
                self._batched(run)

    @cached_property
    def _masses(self) -> dict[int, float]:
        return {}

    def _mass(self, i: int) -> float:
        """Weight of a group in the mean."""
        if self.passes.weight is None:
            return float(self.groups.size(i))
        if i not in self._masses:
            self._masses[i] = sum(self.passes.mass(part) for part in self.groups.group(i))
        return self._masses[i]

    @cached_property
    def _loop_sources(self) -> list[Source]:
        if self.sources is None:
            return []
        if isinstance(self.sources, MicroBatches):
            return [Source(self.sources, shared=True)]
        shared = len(self.sources) < len(self.groups)
        used = range(min(len(self.sources), len(self.groups)))
        return [Source(self.sources.group(i), shared=shared) for i in used]

    def _too_small(self, groups: int) -> bool:
        """Whether running all groups at once costs more than the loop does around its passes."""
        params = self.passes.params
        at = machine(params[0].device)
        return around(groups, sum(p.numel() for p in params), at) < at.chunk

    def _reason_against(self) -> str | None:
        """An option that has no batched form."""
        if self.climber.process_group is not None:
            return "a process_group whose ranks climb together"
        if isinstance(self.climber.ascent, StartingAscent):
            return type(self.climber.ascent).__name__
        if self.passes.bn_stats == "both" and len(self.groups) > 1:
            return "bn_stats='both', which moves statistics from pass to pass of a group"
        shared = isinstance(self.sources, Grouped) and len(self.sources) < len(self.groups)
        if shared or isinstance(self.sources, MicroBatches):
            return "an ascent_batch that several groups climb on"
        if any(is_half(p) for p in self.passes.params):
            return "weights of half precision, whose perturbation is rounded at random"
        return None

    def _alike(self, i: int) -> Any:
        """What groups must have in common to be stacked, those that they climb on included."""
        found = self.groups.alike(i)
        if not isinstance(self.sources, Grouped) or found is None:
            return found
        source = self.sources.alike(i % len(self.sources))
        return None if source is None else (found, source)

    def _loop(self, indices: Sequence[int]) -> None:
        for i in indices:
            sources = self._loop_sources
            found = run_group(
                self.passes,
                self.climber,
                self.groups.group(i),
                sources[i % len(sources)] if sources else None,
                gradient_at_weights=self.gradient_at_weights,
            )
            self.total.add(self._mass(i), found)

    def _batched(self, indices: list[int]) -> None:
        key, done = self._key(indices), 0
        verdicts = verdicts_of(self.passes.params)
        try:
            if key not in verdicts:
                verdicts[key] = self._settle(indices)
            chunk = verdicts[key].chunk
            while chunk > 0 and done < len(indices):
                self._chunk(indices[done : done + chunk])
                done += chunk
        except Unbatchable as error:
            self._fall_back(indices[done:], error, key)
            return
        self._loop(indices[done:])

    def _chunk(self, indices: list[int]) -> None:
        batch = self.groups.stacked(indices)
        source = self.sources.stacked(indices) if isinstance(self.sources, Grouped) else None
        run = BatchedGradient(self.passes, self.climber, gradient_at_weights=self.gradient_at_weights)
        try:
            with self.passes.undone_on_error():
                found = run.of(batch, [self._mass(i) for i in indices], source)
        except NotFinite:
            self._loop(indices)
        else:
            self.total.add_groups(found)

    def _fall_back(self, indices: Sequence[int], error: Unbatchable, key: Hashable) -> None:
        """Runs groups by the loop that cannot be run at once, and says so the first time."""
        if self.engine == "batched":
            raise error
        self._loop(indices)
        verdicts = verdicts_of(self.passes.params)
        known = verdicts.get(key)
        verdicts[key] = Verdict(0)
        if known != Verdict(0) and len(self.groups) > 1:
            text = f"the groups were run one after the other because of {error.what}."
            warnings.warn(text, stacklevel=_frames_of_ours())

    def _settle(self, indices: list[int]) -> Verdict:
        """Runs one group by itself, to see whether that is possible and what it holds."""
        params = self.passes.params
        climber = GroupsClimber(self.climber, params, 1, self.passes.noise, keeps_gradient=True)
        one = self.groups.stacked(indices[:1])
        seen = probe(self.passes, one, planned_groups=len(indices), forms=climber.forms)
        weights = sum(p.numel() for p in params)
        chunk = groups_at_once(
            len(indices),
            saved=seen.saved,
            formed=seen.formed,
            kept=seen.kept,
            params=weights * params[0].element_size(),
            max_memory=self.max_memory,
        )
        loop, batched = seconds(
            seen.found.products,
            len(indices),
            math.ceil(len(indices) / chunk),
            calls=seen.found.calls,
            params=weights,
            device=params[0].device,
        )
        return Verdict(0 if self.engine == "auto" and loop < batched else chunk)

    def _key(self, indices: list[int]) -> Hashable:
        device = self.passes.params[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        climber = self.climber
        return (
            *(loss_key(self.passes.loss), self.groups.shapes(indices[0]), len(indices), autocast),
            *(type(climber.ascent), climber.steps, climber.radii.rho == 0.0, climber.measure),
            *(self.engine, self.max_memory, self.sources is None),
        )


def _frames_of_ours() -> int:
    """How far up the caller's own line is."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("lowland."):
        frame, depth = frame.f_back, depth + 1
    return depth
