"""The loss of several groups, each at weights of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.batched.passes import GroupsPass, GroupsPasses
from lowland.sam.batched.per_group import PerGroup
from lowland.sam.batched.stacked import Stacked
from lowland.sam.examples import Examples
from lowland.sam.passes import Move, Pass, Passes
from lowland.sam.randomness import RandomState
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
class OneGroup:
    """A single trial, evaluated as it is.

    Attributes:
        passes: The loss.
        group: Its examples.
        draws: The random state that every evaluation begins with.
    """

    passes: Passes
    group: Examples
    draws: RandomState

    @torch.enable_grad()
    def slope(self, e: Moves) -> Visit:
        """At ``w + e``, with the gradient."""
        found = self._pass(e)
        require_some(found.gradients)
        gradient = [
            PerGroup(w) if g is None else PerGroup(w, dense=g[None])
            for w, g in zip(self.passes.params, found.gradients, strict=True)
        ]
        return self._visit(found, gradient)

    @torch.no_grad()
    def value(self, e: Moves) -> Visit:
        """At ``w + e``, without."""
        return self._visit(self._pass(e), [])

    def _pass(self, e: Moves) -> Pass:
        self.draws.restore()
        params = self.passes.params
        pairs = [(w, t.whole(1)[0]) for w, t in zip(params, e or (), strict=False) if t is not None]
        if not pairs:
            return self.passes.elsewhere(self.group, None)
        moving, tensors = [w for w, _ in pairs], [t for _, t in pairs]
        return self.passes.elsewhere(self.group, Move(moving, tensors, len(params)))

    def _visit(self, found: Pass, gradient: list[PerGroup]) -> Visit:
        sizes = torch.tensor([size or 1 for _, size in self.group.sized()], dtype=torch.float64)
        rows = [_named(aux) for aux in found.aux]
        extras = {
            name: ((torch.stack([r[name] for r in rows]) * sizes).sum() / sizes.sum())[None]
            for name in rows[0]
        }
        return Visit(found.loss.detach().double().reshape(1).cpu(), extras, gradient)


@dataclass(frozen=True)
class ManyGroups:
    """Several trials at once, through the batched engine.

    Attributes:
        passes: The passes of all.
        groups: Their examples.
        draws: The random state that every evaluation begins with.
    """

    passes: GroupsPasses
    groups: Stacked
    draws: RandomState

    def slope(self, e: Moves) -> Visit:
        """At ``w + e_S``, with gradients."""
        self.draws.restore()
        found = self.passes.recorded(self.groups, range(len(self.passes.passes.params)), e)
        require_some([None if g.absent else g for g in found.gradient])
        return self._visit(found)

    def value(self, e: Moves) -> Visit:
        """At ``w + e_S``, without."""
        self.draws.restore()
        return self._visit(self.passes.values(self.groups, e))

    def _visit(self, found: GroupsPass) -> Visit:
        rows = [_named(aux) for aux in found.aux]
        extras = {name: torch.stack([r[name] for r in rows]) for name in rows[0]}
        return Visit(found.losses.detach().double().cpu(), extras, found.gradient)


def _named(aux: Any) -> dict[str, Tensor]:
    """Means of the tensors that a loss returned beside its value."""
    named = aux if isinstance(aux, Mapping) else {"aux": aux}
    return {str(k): t.detach().double().mean().cpu() for k, t in named.items() if isinstance(t, Tensor)}
