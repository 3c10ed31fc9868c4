"""Which groups of a call are run at once, and which one after the other."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch

from lowland.sam.arguments import Engine
from lowland.sam.batch import MicroBatches
from lowland.sam.batched.climb import GroupsClimber, NotFinite
from lowland.sam.batched.cost import around, machine, seconds
from lowland.sam.batched.gradient import BatchedGradient
from lowland.sam.batched.grouped import Grouped
from lowland.sam.batched.memory import groups_at_once
from lowland.sam.batched.precision import TypesClash
from lowland.sam.batched.probe import probe
from lowland.sam.batched.reachable import Reachable
from lowland.sam.batched.refused import Unbatchable
from lowland.sam.batched.settled import Fingerprint, Verdict, verdicts_of
from lowland.sam.climb import Climber
from lowland.sam.examples import Examples
from lowland.sam.group import Source, run_group
from lowland.sam.passes import Passes
from lowland.sam.precision import is_half
from lowland.sam.said import loss_key, warn_caller
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
            self._fall_back(weighed, Unbatchable(reason))
            return
        runs = [list(run) for _, run in groupby(weighed, key=self._alike)]
        for run in runs:
            ragged = len(run) == 1 and len(runs) > 1
            if self._alike(run[0]) is None:
                self._fall_back(run, Unbatchable("a group in several MicroBatches"))
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
            return float(self.groups.size(i) or 1)
        if i not in self._masses:
            self._masses[i] = sum(self.passes.mass(*sized) for sized in self.groups.group(i).sized())
        return self._masses[i]

    @property
    def mass(self) -> float:
        """Weight of all groups together."""
        return sum(self._mass(i) for i in range(len(self.groups)))

    @property
    def cuts(self) -> bool:
        """Whether m cuts the batch."""
        return len(self.groups) > 1

    @cached_property
    def _loop_sources(self) -> list[Source]:
        if self.sources is None:
            return []
        if isinstance(self.sources, MicroBatches):
            return [Source(Examples(self.sources), shared=True)]
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
        if self.climber.starting is not None:
            return type(self.climber.ascent).__name__
        if self.passes.bn_stats == "both" and len(self.groups) > 1:
            return "bn_stats='both', which moves statistics from pass to pass of a group"
        shared = isinstance(self.sources, Grouped) and len(self.sources) < len(self.groups)
        if shared or isinstance(self.sources, MicroBatches):
            return "an ascent_batch that several groups climb on"
        if any(is_half(p) for p in self.passes.params):
            return "weights of half precision, whose perturbation is rounded at random"
        grouped = [self.groups, *([self.sources] if isinstance(self.sources, Grouped) else [])]
        return next((reason for g in grouped if (reason := g.reason_against()) is not None), None)

    def _alike(self, i: int) -> Any:
        """What groups must have in common to be stacked, those that they climb on included."""
        found = self.groups.alike(i)
        if not isinstance(self.sources, Grouped) or found is None:
            return found
        source = self.sources.alike(i % len(self.sources))
        return None if source is None else (found, source)

    def _loop(self, indices: Sequence[int]) -> None:
        sources = self._loop_sources
        for i in indices:
            with self.groups.lent(i) as group:
                found = run_group(
                    replace(self.passes, cuts=True) if i == 0 and self.cuts else self.passes,
                    self.climber,
                    group,
                    sources[i % len(sources)] if sources else None,
                    gradient_at_weights=self.gradient_at_weights,
                )
            self.total.add(self._mass(i), found)

    def _batched(self, indices: list[int]) -> None:
        key, done = self._key(indices), 0
        verdicts = verdicts_of(self.passes.params)
        verdict = verdicts.get(key)
        if verdict is not None and verdict.waits > 0 and self.engine == "auto":
            verdict.waits -= 1
            self._loop(indices)
            return
        try:
            if verdict is None or not verdict.tried:
                verdict = self._settle(indices, key, verdict)
            while verdict.chunk > 0 and done < len(indices):
                self._chunk(indices[done : done + verdict.chunk])
                done += verdict.chunk
            verdict.held()
        except TypesClash as clash:
            raise clash.error from None
        except Unbatchable as error:
            if verdict is not None:
                verdict.failed()
            self._fall_back(indices[done:], error)
            return
        self._loop(indices[done:])

    def _chunk(self, indices: list[int]) -> None:
        batch = self.groups.stacked(indices)
        source = self.sources.stacked(indices) if isinstance(self.sources, Grouped) else None
        run = BatchedGradient(
            self.passes, self.climber, gradient_at_weights=self.gradient_at_weights, cuts=self.cuts
        )
        put_back = Reachable(self.passes.loss, self.passes.buffers.modules()).taken()
        try:
            with self.passes.undone_on_error():
                found = run.of(batch, [self._mass(i) for i in indices], source)
        except NotFinite:
            put_back()
            self._loop(indices)
        except BaseException:
            put_back()
            raise
        else:
            self.total.add_groups(found)

    def _fall_back(self, indices: Sequence[int], error: Unbatchable) -> None:
        """Runs groups by the loop that cannot be run at once, and says so the first time."""
        if self.engine == "batched":
            raise error
        self._loop(indices)
        said, key = verdicts_of(self.passes.params).said, (loss_key(self.passes.loss), error.what)
        if key not in said and len(self.groups) > 1:
            said.add(key)
            warn_caller(f"the groups were run one after the other because of {error.what}.")

    def _settle(self, indices: list[int], key: Hashable, before: Verdict | None) -> Verdict:
        """Runs one group by itself, to see whether that is possible and what it holds."""
        params, buffers = self.passes.params, self.passes.buffers
        verdict = verdicts_of(params).settle(key, before or Verdict(0, Fingerprint(buffers.modules())))
        climber = GroupsClimber(self.climber, params, 1, self.passes.noise, keeps_gradient=True)
        one = self.groups.stacked(indices[:1])
        try:
            seen = probe(self.passes, one, planned_groups=len(indices), forms=climber.forms)
        except Unbatchable:
            verdict.failed()
            raise
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
        verdict.chunk = 0 if self.engine == "auto" and loop < batched else chunk
        verdict.tried = True
        verdict.fingerprint = Fingerprint(buffers.modules())
        return verdict

    def _key(self, indices: list[int]) -> Hashable:
        device = self.passes.params[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        climber = self.climber
        return (
            *(loss_key(self.passes.loss), self.groups.shapes(indices[0]), len(indices), autocast),
            *(type(climber.ascent), climber.steps, climber.radii.rho == 0.0, climber.measure),
            *(self.engine, self.max_memory, self.sources is None, self.passes.reduction),
        )
