"""The loss of several groups, each at weights of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.looks.look import Look, Pass
from lowland.sam.looks.one_group import OneGroup
from lowland.sam.radii import Radii
from lowland.sam.vectors import One, Shown, Vector
from lowland.sam.vectors.many import Many
from lowland.sam.vectors.per_group import PerGroup
from lowland.sharpness.objective import require_some

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


@dataclass(frozen=True)
class Nearby:
    """Evaluates the loss of each trial's group at weights of its own.

    Attributes:
        look: At the groups, of a single trial at its one group.
    """

    look: Look

    @torch.enable_grad()
    def slope(self, e: Sequence[PerGroup] | None) -> Visit:
        """At ``w + e``, with gradients, of which some parameter must have one."""
        seen = self.look.slope(self._vector(e))
        assert seen.gradient is not None
        gradient = self._each(seen.gradient)
        require_some([None if g.absent else g for g in gradient])
        return self._visit(seen, gradient)

    @torch.no_grad()
    def value(self, e: Sequence[PerGroup] | None) -> Visit:
        """At ``w + e``, without."""
        return self._visit(self.look.value(self._vector(e)), [])

    def _vector(self, e: Sequence[PerGroup] | None) -> Vector | None:
        if e is None:
            return None
        if not isinstance(self.look, OneGroup):
            return Many(e, len(self.look.masses))
        params = self.look.objective.params
        radii = Radii.of([float(not t.absent) for t in e], len(params))
        at = Shown.all_that_move(radii, params, None)
        return One([e[i].whole(1)[0] for i in radii.indices], at=at)

    def _each(self, gradient: Vector) -> list[PerGroup]:
        if isinstance(gradient, Many):
            return gradient.each
        assert isinstance(gradient, One)
        pairs = zip(self.look.objective.params, gradient.formed(), strict=True)
        return [PerGroup(w) if g is None else PerGroup(w, dense=g[None]) for w, g in pairs]

    def _visit(self, seen: Pass, gradient: list[PerGroup]) -> Visit:
        rows = [_named(aux) for aux in seen.aux]
        extras = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if isinstance(self.look, OneGroup):  # of the parts of its group
            sizes = torch.tensor([float(n or 1) for _, n in self.look.examples.sized()], dtype=torch.float64)
            extras = {name: (column @ sizes / sizes.sum())[None] for name, column in extras.items()}
        return Visit(seen.losses.detach().double().reshape(-1).cpu(), extras, gradient)


def _named(aux: Any) -> dict[str, Tensor]:
    """Means of the tensors that a loss returned beside its value."""
    named = aux if isinstance(aux, Mapping) else {"aux": aux}
    return {str(k): t.detach().double().mean().cpu() for k, t in named.items() if isinstance(t, Tensor)}
