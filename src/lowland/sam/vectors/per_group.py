"""One tensor per group, of a parameter's shape, formed only where that is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lowland.sam.precision import working
from lowland.sam.vectors.factors import Factor, column, masked, times

Rows = tuple[int, int]
"""Consecutive rows of a matrix: the first, and one after the last."""


def apart(a: Rows, b: Rows) -> bool:
    """Whether the two have no rows in common."""
    return a[1] <= b[0] or b[1] <= a[0]


@dataclass(frozen=True)
class LowRank:
    """A factor, and the first of the rows of the parameter (as a matrix) that it stands in."""

    factor: Factor
    start: int
    stop: int

    @property
    def rows(self) -> Rows:
        """The rows that it stands in."""
        return self.start, self.stop

    def of(self, factor: Factor) -> LowRank:
        """Another factor in the same rows."""
        return replace(self, factor=factor)


def overlap(parts: Sequence[LowRank]) -> bool:
    """Whether some of the parts stand in some of the same rows, but not in all."""
    return any(not (p.rows == q.rows or apart(p.rows, q.rows)) for p in parts for q in parts)


@dataclass
class PerGroup:
    r"""A gradient or a perturbation of one parameter, :math:`a_S w + T_S + \sum l r^\top`, for each group S.

    Attributes:
        w: The parameter, unperturbed.
        along: Multiples :math:`a_S` of the parameter itself, shape ``(groups,)``; ``None`` for 0.
        dense: :math:`T_S`, shape ``(groups, *shape)``; ``None`` for 0.
        parts: What is not formed, of the parameter as a matrix of its first dimension's rows.
        own: Whether ``dense`` is nobody else's, so that it may be written to.
    """

    w: Tensor
    along: Float[Tensor, " groups"] | None = None
    dense: Float[Tensor, "groups ..."] | None = None
    parts: list[LowRank] = field(default_factory=list)
    own: bool = False

    @property
    def absent(self) -> bool:
        """Whether there is nothing: the loss did not use the parameter."""
        return self.along is None and self.dense is None and not self.parts

    @property
    def low_rank(self) -> bool:
        """Whether nothing is formed."""
        return self.dense is None and bool(self.parts)

    def matrix_of_w(self) -> Float[Tensor, "q p"]:
        """The parameter as a matrix."""
        return self.w.detach().reshape(len(self.w), -1)

    def give_up(self) -> None:
        """Holds nothing any longer."""
        self.along, self.dense, self.parts = None, None, []

    def add_dense(self, tensor: Float[Tensor, "groups ..."]) -> None:
        """Adds a formed tensor, which may be another's too."""
        self.own = self.dense is not None
        self.dense = working(tensor) if self.dense is None else self.dense + tensor

    def add_part(self, part: LowRank) -> None:
        """Adds a product that is not formed."""
        self.parts.append(part)

    def tidy(self) -> None:
        """Forms what is formed in part, and what overlaps in part."""
        if self.dense is not None or overlap(self.parts):
            self.form()

    def form(self) -> None:
        """Forms everything but the multiple of ``w``."""
        for part in self.parts:
            matrices = part.factor.formed()
            if part.stop - part.start < len(self.w):
                padded = matrices.new_zeros(len(matrices), *self.matrix_of_w().shape)
                padded[:, part.start : part.stop] = matrices
                matrices = padded
            formed = matrices.view(len(matrices), *self.w.shape)
            self.dense = formed if self.dense is None else self.dense + formed
            self.own = True
        self.parts = []

    def whole(self, groups: int) -> Float[Tensor, "groups ..."]:
        """The tensors of all groups, formed; not to be written to."""
        self.form()
        if self.along is None:
            if self.dense is None:
                wide = torch.promote_types(self.w.dtype, torch.float32)
                self.dense = torch.zeros_like(self.w.detach(), dtype=wide).expand(groups, *self.w.shape)
            return self.dense
        w = working(self.w.detach())
        along = column(self.along, w.expand(groups, *w.shape)) * w
        return along if self.dense is None else along.add_(self.dense)

    def flat(self, groups: int) -> Float[Tensor, "groups numel"]:
        """The tensors of all groups as rows, formed; what is held stays as it is."""
        return replace(self).whole(groups).reshape(groups, -1)

    def chosen(self, groups: Int[Tensor, " chosen"], dtype: torch.dtype) -> PerGroup:
        """The tensors of some groups, in another type."""
        return PerGroup(
            self.w if self.along is None else self.w.detach().to(dtype),
            None if self.along is None else self.along[groups],
            None if self.dense is None else self.dense[groups].to(dtype),
            [p.of(p.factor.chosen(groups, dtype)) for p in self.parts],
        )

    def scaled(self, factors: Float[Tensor, " groups"]) -> PerGroup:
        """Each group's tensor times its factor."""
        return self._scaled(factors, [p.of(p.factor.scaled(factors)) for p in self.parts])

    def balanced(self, factors: Float[Tensor, " groups"]) -> PerGroup:
        """The same for factors of any size, none of them negative."""
        return self._scaled(factors, [p.of(p.factor.balanced(factors)) for p in self.parts])

    def scale_(self, factors: Float[Tensor, " groups"]) -> PerGroup:
        """The same in place where something is formed."""
        if self.dense is None or not self.own:
            return self.scaled(factors)
        self.dense.mul_(column(factors, self.dense))
        along = None if self.along is None else self.along * factors
        parts = [p.of(p.factor.scaled(factors)) for p in self.parts]
        return PerGroup(self.w, along, self.dense, parts, own=True)

    def _scaled(self, factors: Float[Tensor, " groups"], parts: list[LowRank]) -> PerGroup:
        along = None if self.along is None else self.along * factors
        dense = None if self.dense is None else times(self.dense, factors)
        return PerGroup(self.w, along, dense, parts, own=True)

    def only(self, chosen: Bool[Tensor, " groups"]) -> PerGroup:
        """The tensors of the ``chosen`` groups, 0 for the others, whatever theirs are."""
        along = None if self.along is None else masked(self.along, chosen)
        dense = None if self.dense is None else masked(self.dense, chosen)
        return PerGroup(self.w, along, dense, [p.of(p.factor.only(chosen)) for p in self.parts], own=True)

    def plus(self, other: PerGroup) -> PerGroup:
        """The sum."""
        along = other.along if self.along is None else self.along
        if self.along is not None and other.along is not None:
            along = self.along + other.along
        dense = other.dense if self.dense is None else self.dense
        if self.dense is not None and other.dense is not None:
            dense = self.dense + other.dense
        return PerGroup(self.w, along, dense, [*self.parts, *other.parts])

    def times(self, factors: Tensor) -> PerGroup:
        """Each group's tensor times one tensor that all groups share, of a shape that broadcasts.

        It stays unformed where the factors are the same along each row of the parameter as a matrix.
        """
        by_row = self.w.dim() > 0 and factors.numel() == len(self.w) == factors.shape[0]
        if self.along is not None or not by_row:
            return PerGroup(self.w, None, self.whole(1 if self.along is None else len(self.along)) * factors)
        rows = factors.flatten()
        dense = None if self.dense is None else self.dense * factors
        parts = [p.of(p.factor.scaled_rows(rows[p.start : p.stop])) for p in self.parts]
        return PerGroup(self.w, None, dense, parts)

    def summed(self, share: Float[Tensor, " groups"]) -> Tensor | None:
        """The sum over groups, each times its share; ``None`` if there is nothing."""
        if self.absent:
            return None
        total = None
        if self.dense is not None:
            total = torch.mv(self.dense.reshape(len(self.dense), -1).t(), share.to(self.dense)).view(
                self.w.shape
            )
        if self.along is not None:
            along = (self.along * share).sum() * working(self.w.detach()).contiguous()
            total = along if total is None else total + along
        for part in self.parts:
            found = part.factor.summed(share)
            if total is None and part.stop - part.start == len(self.w):
                total = found.view(self.w.shape)
                continue
            if total is None:
                total = found.new_zeros(self.w.shape)
            total.view(len(self.w), -1)[part.start : part.stop] += found
        return total


def mapped(tensors: Sequence[PerGroup], function: Callable[[PerGroup], PerGroup]) -> list[PerGroup]:
    """``function`` of each; what is absent stays so."""
    return [t if t.absent else function(t) for t in tensors]
