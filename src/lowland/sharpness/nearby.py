"""The loss of several groups, each at weights of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.batched.evaluator import Evaluator, Recorded
from lowland.sam.batched.per_group import PerGroup
from lowland.sam.looks.look import Pass
from lowland.sam.looks.one_group import OneGroup
from lowland.sam.looks.world import World
from lowland.sam.radii import Radii
from lowland.sam.stacked import Stacked
from lowland.sam.vectors import One, Shown
from lowland.sharpness.objective import require_some

Moves = Sequence[PerGroup | None] | None
Extras = Mapping[str, Float[Tensor, " trials"]]


@dataclass(frozen=True)
class Visit:
    """What was found where the trials stand.

    Attributes:
        losses: The mean loss of each trial's group, in float64.
        extras: Means of what the loss returned beside it, by name.
        gradient: Gradients, one per parameter; empty unless asked for.
        share: The norm of the gradient of the parameters that move, over that of all; 1 unless some stay.
    """

    losses: Float[Tensor, " trials"]
    extras: Extras
    gradient: list[PerGroup]
    share: Float[Tensor, " trials"] | float = 1.0


@runtime_checkable
class Nearby(Protocol):
    """Evaluates the loss of each trial's group at weights of its own."""

    def slope(self, e: Moves) -> Visit:
        """At ``w + e``, with gradients, of which some parameter must have one."""

    def value(self, e: Moves) -> Visit:
        """At ``w + e``, without."""


@dataclass(frozen=True)
class OneTrial:
    """A single trial, evaluated as it is.

    Attributes:
        look: The look at its group.
    """

    look: OneGroup

    @torch.enable_grad()
    def slope(self, e: Moves) -> Visit:
        """At ``w + e``, with the gradient."""
        seen = self.look.slope(self._one(e))
        assert isinstance(seen.gradient, One)
        gradients = seen.gradient.formed()
        require_some(gradients)
        pairs = zip(self.look.objective.params, gradients, strict=True)
        return self._visit(seen, [PerGroup(w) if g is None else PerGroup(w, dense=g[None]) for w, g in pairs])

    @torch.no_grad()
    def value(self, e: Moves) -> Visit:
        """At ``w + e``, without."""
        return self._visit(self.look.value(self._one(e)), [])

    def _one(self, e: Moves) -> One | None:
        params = self.look.objective.params
        moves = {i: t.whole(1)[0] for i, t in enumerate(e or ()) if t is not None}
        if not moves:
            return None
        radii = Radii.of([float(i in moves) for i in range(len(params))], len(params))
        return One(list(moves.values()), at=Shown.all_that_move(radii, params, None))

    def _visit(self, seen: Pass, gradient: list[PerGroup]) -> Visit:
        sizes = torch.tensor([size or 1 for _, size in self.look.examples.sized()], dtype=torch.float64)
        rows = [_named(aux) for aux in seen.aux]
        extras = {
            name: ((torch.stack([r[name] for r in rows]) * sizes).sum() / sizes.sum())[None]
            for name in rows[0]
        }
        return Visit(seen.losses.detach().double().reshape(1).cpu(), extras, gradient)


@dataclass(frozen=True)
class ManyTrials:
    """Several trials at once.

    Attributes:
        evaluator: What evaluates their loss.
        groups: Their examples.
        world: What all evaluations see alike.
    """

    evaluator: Evaluator
    groups: Stacked
    world: World

    def slope(self, e: Moves) -> Visit:
        """At ``w + e_S``, with gradients."""
        self.world.again()
        found = self.evaluator.recorded(self.groups, range(len(self.evaluator.objective.params)), e)
        require_some([None if g.absent else g for g in found.gradient])
        return self._visit(found, found.gradient)

    def value(self, e: Moves) -> Visit:
        """At ``w + e_S``, without."""
        self.world.again()
        return self._visit(self.evaluator.values(self.groups, e), [])

    def _visit(self, found: Recorded | Pass, gradient: list[PerGroup]) -> Visit:
        rows = [_named(aux) for aux in found.aux]
        extras = {name: torch.stack([r[name] for r in rows]) for name in rows[0]}
        return Visit(found.losses.detach().double().cpu(), extras, gradient)


def _named(aux: Any) -> dict[str, Tensor]:
    """Means of the tensors that a loss returned beside its value."""
    named = aux if isinstance(aux, Mapping) else {"aux": aux}
    return {str(k): t.detach().double().mean().cpu() for k, t in named.items() if isinstance(t, Tensor)}
