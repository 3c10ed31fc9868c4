"""The vector of many groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.asked import holds
from lowland.sam.precision import working
from lowland.sam.vectors.norms import cosines, squared_norms
from lowland.sam.vectors.number import Number, largest_factor
from lowland.sam.vectors.one import One
from lowland.sam.vectors.per_group import PerGroup, mapped
from lowland.sam.vectors.shown import Shown
from lowland.sam.vectors.vector import Vector


class Many(Vector):
    """A gradient or a perturbation of each of many groups; norms have shape ``(groups,)``.

    Args:
        each: For every parameter the tensors of the groups, formed only where that is cheaper.
        groups: Number of groups.
        at: The weights that they belong to, where an ascent was shown some.
        norm: The l2 norms, if they are known.
        used_up: Whether nobody needs this vector once it has been scaled, so that its memory may be taken.
    """

    def __init__(
        self,
        each: Sequence[PerGroup],
        groups: int,
        at: Shown | None = None,
        norm: Tensor | None = None,
        *,
        used_up: bool = False,
    ) -> None:
        self.each = list(each)
        self.groups = groups
        self.at = at
        self._norm = norm
        self.used_up = used_up

    def _of(
        self,
        each: Sequence[PerGroup],
        at: Shown | None = None,
        norm: Tensor | None = None,
        *,
        used_up: bool = False,
    ) -> Many:
        """Another vector of the same kind."""
        return Many(each, self.groups, at, norm, used_up=used_up)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [t.whole(self.groups) for t in self.each[index]]
        return self.each[index].whole(self.groups)

    def __len__(self) -> int:
        return len(self.each)

    def norm(self) -> Float[Tensor, " groups"]:
        """The l2 norm of each group's tensors."""
        if self._norm is None:
            self._norm = squared_norms(self.each, self.groups).sqrt()
        return self._norm

    @property
    def is_known_zero(self) -> bool:
        """Never: one group may move where another does not."""
        return False

    def is_finite(self) -> bool:
        """Whether the norm of every group is, in the type of a norm over all tensors."""
        most = max(torch.finfo(torch.promote_types(t.w.dtype, torch.float32)).max for t in self.each)
        return holds((self.norm() <= most).all())

    def cosine(self, other: Many) -> Float[Tensor, " groups"]:
        """The cosine of each group's two vectors; NaN if one is zero or not finite."""
        return cosines(self.each, other.each, self.groups)

    def scaled(self, factor: Number) -> Many:
        """Each group's tensors times its factor, none of them negative."""
        factors = self.number(factor)
        if holds(((factors > 1.0 / _MODEST) | ((factors > 0.0) & (factors < _MODEST))).any()):
            found = mapped(self.each, lambda t: t.balanced(factors))
        else:
            found = mapped(self.each, lambda t: t.scale_(factors) if self.used_up else t.scaled(factors))
        norm = None if self._norm is None else self._norm * factors.to(self._norm)
        return self._of(found, self.at, norm)

    def plus(self, other: Many) -> Many:
        """The sum."""
        found = [s.plus(t) for s, t in zip(self.each, other.each, strict=True)]
        return self._of(found, other.at or self.at)

    def times(self, units: Sequence[Tensor | None]) -> Many:
        """The product."""
        pairs = zip(self.each, units, strict=True)
        found = [t if u is None or t.absent else t.times(u) for t, u in pairs]
        return self._of(found, self.at, used_up=self.used_up)

    @property
    def largest_factor(self) -> float:
        """The largest number that all tensors can be multiplied with."""
        return largest_factor(t.w.dtype for t in self.each if not t.absent)

    def asked(self, ascent: Callable[[Any], Any], step: Any) -> Many:
        """What ``ascent`` makes of a step along this vector: asked once if it can, else for each group."""
        if serves_many(ascent):
            found: Many = ascent(step)
            return found
        formed, before = self[:], None if step.e is None else step.e[:]
        rows = []
        for k, norm in enumerate(step.norm.tolist()):
            own = None if before is None else One([t[k] for t in before])
            one = ascent(replace(step, g=One([t[k] for t in formed]), e=own, norm=norm))
            rows.append(own if one is None else one)
        return self._of(stacked(step.w, rows), self.at)

    def number(self, factor: Number) -> Float[Tensor, " groups"]:
        """A number for each group."""
        if isinstance(factor, Tensor):
            return factor.expand(self.groups)
        return torch.full((self.groups,), factor, dtype=torch.float64, device="cpu")


_MODEST = 2.0**-30
"""Factors between this and its inverse leave products with what is scaled in the range of a type."""


def stacked(weights: Sequence[Tensor], rows: Sequence[Sequence[Tensor] | None]) -> list[PerGroup]:
    """The perturbations of all groups, formed, from those of each; ``None`` for none."""
    zeros = [torch.zeros_like(working(w.detach())) for w in weights]
    columns = zip(*(zeros if row is None else list(row) for row in rows), strict=True)
    return [PerGroup(w, dense=torch.stack(column)) for w, column in zip(weights, columns, strict=True)]


def serves_many(ascent: object) -> bool:
    """Whether an ascent says so beside its own ``__call__``: one that another class inherits says nothing."""
    owner = next((c for c in type(ascent).__mro__ if "__call__" in vars(c)), type(ascent))
    return bool(vars(owner).get("of_many", False))


def forms(ascent: object) -> bool:
    """Whether an ascent needs every group's gradient formed."""
    return not serves_many(ascent) or bool(getattr(ascent, "has_no_low_rank", False))
