"""How the groups of a sharded model are run: all ranks make the same passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lowland.sam.algorithm import Climb
from lowland.sam.batched.look import ManyGroups
from lowland.sam.batched.precision import TypesClash
from lowland.sam.batched.reachable import Reachable
from lowland.sam.batched.refused import refuse_modules
from lowland.sam.batched.step import Step, masses_of
from lowland.sam.climbing import Climbing
from lowland.sam.engine import Attempt, Plan
from lowland.sam.examples import Examples
from lowland.sam.looks.look import Look
from lowland.sam.looks.world import World
from lowland.sam.objective import Objective
from lowland.sam.randomness import RandomState
from lowland.sam.sharded.by_itself import ByThemselves, PenalizedByThemselves
from lowland.sam.sharded.sharded import Sharded
from lowland.sam.sharded.together import Together
from lowland.sam.stacked import Stacked
from lowland.sam.total import Found
from lowland.sam.unbatchable import IN_SEVERAL_PARTS, Unbatchable


@dataclass(frozen=True, kw_only=True)
class TogetherPlan(Plan):
    """The i-th groups of all ranks climb together, one after the other.

    Attributes:
        sharded: The model.
        alike: Whether the groups of all ranks are of the same sizes.
    """

    sharded: Sharded
    alike: bool

    def attempts(self) -> Iterator[Attempt]:
        """All groups."""
        return self.one_by_one(range(len(self.groups)))

    def mass(self, i: int) -> float:
        """Weight of a group in the mean: the same on all ranks, whose gradients FSDP has made one of."""
        return self._alike[i]

    def found(self, look: Look, how: Climbing, source: Callable[[], Climb] | None) -> Found:
        """What the passes of a group find, of which FSDP has weighted the gradients."""
        found = super().found(look, how, source)
        return replace(found, loss=found.loss * self._counts[self._next])

    def _look(self, objective: Objective, group: Examples, mass: float, world: World) -> Look:  # noqa: ARG002
        look = Together(
            *(objective, self.how, group, self.masses[self._next], world),
            sharded=self.sharded,
            climbs=self._climbs[self._next],
            counts=self._counts[self._next],
        )
        found: Look = self.penalized(look)
        return found

    @property
    def _next(self) -> int:
        return len(self.total.places)

    @cached_property
    def _climbs(self) -> list[float]:
        """What this rank's part of each group counts in the gradient that all climb along."""
        return _over(self.masses, self.masses if self.alike else self.sharded.means(self.masses))

    @cached_property
    def _shares(self) -> list[float]:
        """What each group counts in this rank's mean."""
        return [mass / sum(self.masses) for mass in self.masses]

    @cached_property
    def _alike(self) -> list[float]:
        """The same, on the mean over ranks."""
        return self._shares if self.alike else self.sharded.means(self._shares)

    @cached_property
    def _counts(self) -> list[float]:
        """What this rank's loss of each group counts in the last pass."""
        return _over(self._shares, self._alike)


@dataclass(frozen=True, kw_only=True)
class ByThemselvesPlan(Plan):
    """Every group of a rank climbs by itself: those of the same shapes at once.

    Attributes:
        sharded: The model.
    """

    sharded: Sharded

    def attempts(self) -> Iterator[Attempt]:
        """All groups; where other ranks have groups of more shapes, passes beside them that find nothing."""
        weighed = [i for i, mass in enumerate(self.masses) if mass > 0.0]
        reason = self._reason_against()
        if reason is not None:
            raise Unbatchable(reason)
        runs = [list(run) for _, run in groupby(weighed, key=self.groups.alike)]
        if any(self.groups.alike(run[0]) is None for run in runs):
            raise Unbatchable(IN_SEVERAL_PARTS)
        differ = self.groups.m is not None or self.objective.weight is not None
        most = self.sharded.largest(len(runs)) if differ else len(runs)
        for run in runs:
            yield self._attempt(run)
        for _ in range(most - len(runs)):
            yield self._beside()

    def penalized(self, look: Any) -> Any:
        """The look with the l2 term, if there is one."""
        return PenalizedByThemselves(look, self.l2 / self.times) if self.l2 > 0.0 else look

    def _reason_against(self) -> str | None:
        refuse_modules(self.objective)
        if self.objective.bn_stats == "both" and len(self.groups) > 1:
            return "bn_stats='both', which moves statistics from pass to pass of a group"
        return self.groups.reason_against()

    def _attempt(self, indices: list[int]) -> Attempt:
        attempt = Attempt()
        attempt.block = self._together(indices, attempt)
        return attempt

    @contextmanager
    def _together(self, indices: list[int], attempt: Attempt) -> Iterator[None]:
        follow = self.total.places == [i for i in range(indices[0]) if self.masses[i] > 0.0]
        step = _Step(
            self, *self._of(indices), len(self.groups) > 1, follow, whole=sum(self.masses) / self.times
        )
        with self._put_back():
            attempt.run = partial(step.run, World(self.objective))
            yield
            step.require_gone()
        self.total.add(attempt.hand_over(), sum(self.masses[i] for i in indices), indices)

    def _beside(self) -> Attempt:
        """The passes of the first group once more, which leave nothing and count nothing."""
        attempt = Attempt()
        attempt.block = self._counting_nothing(attempt)
        return attempt

    @contextmanager
    def _counting_nothing(self, attempt: Attempt) -> Iterator[None]:
        objective = replace(self.objective, bn_stats="frozen")
        step = _Step(replace(self, objective=objective), *self._of([0]), False, True, whole=math.inf)
        draws = RandomState.capture(objective.devices)
        with self._put_back():
            attempt.run = partial(step.run, World(objective))
            yield
            step.require_gone()
        draws.restore()
        del attempt.found

    def _of(self, indices: list[int]) -> tuple[Stacked, None, Tensor]:
        """Some groups, what they climb on, and their masses."""
        return self.groups.stacked(indices), None, masses_of(self, indices)

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """A block after whose failure what the loss keeps is what it was."""
        put_back = Reachable(self.objective.loss, self.objective.buffers.modules()).taken()
        try:
            yield
        except BaseException as error:
            put_back()
            if isinstance(error, TypesClash):
                raise error.error from None
            raise


@dataclass(kw_only=True)
class _Step(Step):
    """The passes of some groups of a sharded model.

    Attributes:
        whole: What the masses of all groups add up to; infinite where these count nothing.
    """

    whole: float

    def _look(
        self, objective: Objective, how: Climbing, batch: Stacked, world: World, *, follow: bool
    ) -> ManyGroups:
        assert isinstance(self.plan, ByThemselvesPlan)
        look = ByThemselves(
            *(objective, how, batch, self.masses, world),
            follow=follow,
            sharded=self.plan.sharded,
            whole=self.whole,
        )
        if math.isinf(self.whole):
            look.added.append(_nothing)
        self._looks.append(look)
        return look


def _nothing(gradient: Tensor, _: int) -> Tensor:
    return torch.zeros_like(gradient)


def _over(a: list[float], b: list[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]
