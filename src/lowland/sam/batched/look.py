"""The look at many groups at once, each at weights of its own: no weight is moved anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.ascent.step import Weights
from lowland.sam.batched.evaluator import Evaluator
from lowland.sam.batched.precision import autocast_as_it_is
from lowland.sam.batched.refused import require_gone, require_no_draws
from lowland.sam.climbing import Climbing
from lowland.sam.linearized import Linearized
from lowland.sam.looks.look import Drawn, Pass
from lowland.sam.looks.world import World
from lowland.sam.objective import Objective
from lowland.sam.precision import is_half
from lowland.sam.stacked import Stacked
from lowland.sam.vectors import One, Shown
from lowland.sam.vectors.many import Many, forms, stacked
from lowland.sam.vectors.norms import squared_norms
from lowland.sam.vectors.per_group import PerGroup


class NotFinite(Exception):
    """Some group's gradient is not finite."""


@dataclass
class ManyGroups:
    """Several groups of the same shapes.

    Attributes:
        objective: The loss.
        how: The climb.
        batch: The groups.
        masses: Weights of the groups in means, on the CPU, in double precision.
        world: What all passes see alike.
        formed: Whether gradients are formed; ``None`` for what the ascent needs.
        follow: Whether these are the next groups of the batch, so that running statistics may move.
    """

    objective: Objective
    how: Climbing
    batch: Stacked
    masses: Float[Tensor, " groups"]
    world: World
    formed: bool | None = None
    follow: bool = True

    def __post_init__(self) -> None:
        autocast = autocast_as_it_is(self.objective.params[0])
        formed = forms(self.how.ascent) if self.formed is None else self.formed
        noise = None if self.how.noise is None else self.how.noise.next()
        self._evaluator = Evaluator(
            self.objective, formed, autocast=autocast, follow=self.follow, noise=noise
        )
        self._all = range(len(self.objective.params))
        self._linearized: Linearized | None = None

    def same_world(self) -> World:
        """The block of all passes."""
        return self.world

    def slope(self, e: Many | None, *, first: bool = False) -> Pass:
        """The gradient of each group at ``w + e``."""
        wanted = self._all if first and self.how.both else self.how.radii.wanted or self._all
        return self._recorded(e, wanted, self._in_halves(first=first), first=first)

    def mean(self, e: Many | None, *, first: bool = False) -> Pass:
        """The mean gradient of the groups at ``w + e``, which is used up."""
        linearized = self._in_halves(first=first, last=True)
        if self.objective.measure:
            return self._recorded(e, self._all, linearized, first=first)
        self.world.again()
        spend = e is not None and not e.kept
        seen = self._evaluator.summed(
            self.batch, self._share, self._moves(e), first=first, spend=spend, linearized=linearized
        )
        self._note(first)
        return seen

    def value(self, e: Many | None, *, first: bool = False) -> Pass:
        """The objectives at ``w + e``."""
        self.world.again()
        linearized = self._in_halves(first=first)
        seen = self._evaluator.values(self.batch, self._moves(e), first=first, linearized=linearized)
        self._note(first)
        return seen

    def shown(self, seen: Pass) -> Many:
        """The gradient of the weights that may move, without the scale."""
        how = self.how
        assert isinstance(seen.gradient, Many)
        each = [seen.gradient.each[i] for i in how.radii.indices]
        used_up = how.steps == 1 and not (how.both or how.remembers)
        found = self._many(each, how.at, used_up=used_up)
        if self.objective.is_scaled:
            found = found.scaled(1.0 / self.objective.scale)
        return found if found.is_finite() else self._not_finite(found)

    def _not_finite(self, found: Many) -> Many:  # noqa: ARG002 - another look goes on with it
        raise NotFinite

    def drawn(self, ask: Drawn) -> Many | None:
        """A perturbation of each group that needs no gradient."""
        at = self.how.at
        told = Weights(at.w, self.how.radii.rho, at.names, self.how.noise)
        rows = [ask(told) for _ in range(self.batch.groups)]
        if all(row is None for row in rows):
            return None
        return Many(stacked(at.w, rows), self.batch.groups, at)

    def everywhere(self, e: Many) -> Many:
        """The perturbations of all parameters."""
        found = [PerGroup(w) for w in self.objective.params]
        for i, ratio, t in zip(self.how.radii.indices, self.how.radii.ratios, e.each, strict=True):
            found[i] = t if ratio == 1.0 or t.absent else t.scaled(e.number(ratio))
        return self._many(found)

    def weights(self, e: Many | None) -> Many:
        """Each group's ``w + e``; ``e`` is not used up by the pass that follows."""
        ones = torch.ones(self.batch.groups, dtype=torch.float64, device="cpu")
        w = self._many([PerGroup(w, along=ones.to(w.device)) for w in self.objective.params])
        if e is None:
            return w
        e.kept = True
        return w.plus(self.everywhere(e))

    def _many(self, each: Sequence[PerGroup], at: Shown | None = None, *, used_up: bool = False) -> Many:
        """A vector of the groups."""
        return Many(each, self.batch.groups, at, used_up=used_up)

    def summed(self, v: Many) -> One:
        """The weighted mean over the groups."""
        return One([t.summed(self._share) for t in v.each])

    @cached_property
    def _share(self) -> Tensor:
        return (self.masses / self.masses.sum()).to(self.objective.params[0].device)

    def _held(self, i: int) -> AbstractContextManager[object]:  # noqa: ARG002 - here they always are
        """A block in which the numbers of the i-th parameter are there."""
        return nullcontext()

    def _moves(self, e: Many | None) -> list[PerGroup | None] | None:
        return None if e is None else [None if t.absent else t for t in self.everywhere(e).each]

    def _in_halves(self, *, first: bool, last: bool = False) -> Linearized | None:
        """The loss as functional SAM sees it, in its first pass and its last."""
        if first and self.how.in_halves and self.how.radii.move:
            self._linearized = Linearized(self.objective)
        return self._linearized if first or last else None

    def _recorded(
        self, e: Many | None, wanted: Sequence[int], linearized: Linearized | None, *, first: bool
    ) -> Pass:
        self.world.again()
        moves = self._moves(e)
        found = self._evaluator.recorded(self.batch, wanted, moves, first=first, linearized=linearized)
        self._note(first)
        realised = self._realised(e) if self.objective.measure and e is not None else None
        return Pass(found.losses, found.aux, self._many(found.gradient), None, realised, found.connected)

    def _note(self, first: bool) -> None:
        """What the first pass leaves of the generators stays."""
        if first and self.world.draws is not None:
            require_no_draws(self.world.draws, self.batch.groups)
            self.world.stays()

    def require_gone(self) -> None:
        """Refuses a loss that keeps a tensor of a pass."""
        require_gone(self._evaluator.results)

    def _realised(self, e: Many) -> tuple[Tensor, Tensor]:
        """Norm of each group's perturbation once the weights are rounded, and the share that moved."""
        groups, moves = self.batch.groups, self.everywhere(e).each
        squares = torch.zeros(groups, dtype=torch.float64, device="cpu")
        moved, total = torch.zeros_like(squares), 0
        for i in self.how.radii.indices:
            w, move = self.objective.params[i].detach(), moves[i]
            total += w.numel()
            with self._held(i):
                if not move.absent:
                    asked = move.whole(groups)  # which is not rounded to half precision here: products are
                    change = asked if is_half(w) else (w + asked) - w
                    squares += squared_norms([PerGroup(w, dense=change)], groups).cpu()
                    moved += change.reshape(groups, -1).count_nonzero(1).cpu()
        return squares.sqrt(), moved / max(total, 1)
