"""Weights that are there unit by unit, for what is to be computed of them outside of passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.sharded.fsdp import held
from lowland.sam.vectors.many import Many
from lowland.sam.vectors.norms import inner_products, squared_norms
from lowland.sam.vectors.per_group import PerGroup
from lowland.sam.vectors.shown import Shown


class Gathering:
    """Gathers the units of gathered parameters, one at a time.

    Args:
        units: A module of the unit of each, by its identity.
    """

    def __init__(self, units: dict[int, Any]) -> None:
        self._units = units
        self._open: Any = None
        self._keeps = False

    @contextmanager
    def holding(self, param: Tensor) -> Iterator[None]:
        """A block in which the numbers of a parameter are there."""
        unit = self._units[id(param)]
        if unit is not self._open:
            self._close()
            unit.unshard()
            self._open = unit
        try:
            yield
        finally:
            if not self._keeps:
                self._close()

    @contextmanager
    def one_unit(self) -> Iterator[None]:
        """A block in which a unit is there until another one is asked for."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self._close()

    def by_unit(self, each: Sequence[PerGroup]) -> Iterator[list[int]]:
        """The places of what belongs to the parameters of one unit after the other, which is there then."""
        places: dict[int, list[int]] = {}
        for i, t in enumerate(each):
            places.setdefault(id(self._units[id(t.w)]), []).append(i)
        for of_unit in places.values():
            with held(self._units[id(each[of_unit[0]].w)]):
                yield of_unit

    def _close(self) -> None:
        if self._open is not None:
            self._open.reshard()
            self._open = None


class OnRank(Many):
    """The vector of the groups of a rank; a multiple of the weights in it is measured unit by unit.

    All ranks ask for the same norms and cosines in the same order, and each of them gathers every unit.

    Args:
        each: For every parameter the tensors of the groups.
        groups: Number of groups.
        at: The weights that they belong to.
        norm: The l2 norms, if they are known.
        used_up: Whether its memory may be taken.
        gathering: Gathers the weights.
    """

    def __init__(
        self,
        each: Sequence[PerGroup],
        groups: int,
        at: Shown | None = None,
        norm: Tensor | None = None,
        *,
        used_up: bool = False,
        gathering: Gathering,
    ) -> None:
        super().__init__(each, groups, at, norm, used_up=used_up)
        self._gathering = gathering

    def _of(
        self,
        each: Sequence[PerGroup],
        at: Shown | None = None,
        norm: Tensor | None = None,
        *,
        used_up: bool = False,
    ) -> OnRank:
        return OnRank(each, self.groups, at, norm, used_up=used_up, gathering=self._gathering)

    def norm(self) -> Float[Tensor, " groups"]:
        """The l2 norm of each group's tensors."""
        if self._norm is None and self._has_weights:
            squares = [
                squared_norms([self.each[i] for i in places], self.groups)
                for places in self._gathering.by_unit(self.each)
            ]
            self._norm = torch.stack(squares).sum(0).sqrt()
        return super().norm()

    def cosine(self, other: Many) -> Float[Tensor, " groups"]:
        """The cosine of each group's two vectors; NaN if one is zero or not finite."""
        if not self._has_weights:
            return super().cosine(other)
        products = [
            inner_products([self.each[i] for i in places], [other.each[i] for i in places], self.groups)
            for places in self._gathering.by_unit(self.each)
        ]
        found = torch.stack(products).sum(0)
        lengths = self.norm() * other.norm().to(self.norm())
        return torch.where(
            (lengths > 0) & lengths.isfinite(), found / lengths, torch.full_like(found, torch.nan)
        )

    @property
    def _has_weights(self) -> bool:
        return any(t.along is not None for t in self.each)
