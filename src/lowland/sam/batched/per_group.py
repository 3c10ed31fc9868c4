"""One tensor per group, of a parameter's shape, formed only where that is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.batched.factors import Factor, column, gram, times
from lowland.sam.precision import working

HEAVY = 1e-4
"""Share of the terms of a squared norm below which so many digits cancel that the matrix is formed."""


Rows = tuple[int, int]
"""Consecutive rows of a matrix: the first, and one after the last."""


def apart(a: Rows, b: Rows) -> bool:
    """Whether the two have no rows in common."""
    return a[1] <= b[0] or b[1] <= a[0]


@dataclass(frozen=True)
class Part:
    """A factor, and the first of the rows of the parameter (as a matrix) that it stands in."""

    factor: Factor
    start: int
    stop: int

    @property
    def rows(self) -> Rows:
        """The rows that it stands in."""
        return self.start, self.stop


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
    parts: list[Part] = field(default_factory=list)
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

    def add_dense(self, tensor: Float[Tensor, "groups ..."]) -> None:
        """Adds a formed tensor, which may be another's too."""
        self.own = self.dense is not None
        self.dense = working(tensor) if self.dense is None else self.dense + tensor

    def add_part(self, part: Part) -> None:
        """Adds a product that is not formed."""
        self.parts.append(part)

    def tidy(self) -> None:
        """Forms what is formed in part, and what overlaps in part."""
        parts = self.parts
        if self.dense is not None or any(
            not (p.rows == q.rows or apart(p.rows, q.rows)) for p in parts for q in parts
        ):
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
                self.dense = torch.zeros_like(working(self.w.detach())).expand(groups, *self.w.shape)
            return self.dense
        w = working(self.w.detach())
        along = column(self.along, w.expand(groups, *w.shape)) * w
        return along if self.dense is None else along.add_(self.dense)

    def scaled(self, factors: Float[Tensor, " groups"]) -> PerGroup:
        """Each group's tensor times its factor."""
        return PerGroup(
            self.w,
            None if self.along is None else self.along * factors,
            None if self.dense is None else times(self.dense, factors),
            [Part(p.factor.scaled(factors), p.start, p.stop) for p in self.parts],
            own=True,
        )

    def scale_(self, factors: Float[Tensor, " groups"]) -> PerGroup:
        """The same in place where something is formed."""
        if self.dense is None or not self.own:
            return self.scaled(factors)
        dense = self.dense.mul_(column(factors, self.dense))
        along = None if self.along is None else self.along * factors
        parts = [Part(p.factor.scaled(factors), p.start, p.stop) for p in self.parts]
        return PerGroup(self.w, along, dense, parts, own=True)

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
        parts = [Part(p.factor.scaled_rows(rows[p.start : p.stop]), p.start, p.stop) for p in self.parts]
        return PerGroup(self.w, None, dense, parts)

    def summed(self, share: Float[Tensor, " groups"]) -> Tensor | None:
        """The sum over groups, each times its share; ``None`` if there is nothing."""
        if self.absent:
            return None
        total = None
        if self.dense is not None:
            total = torch.mv(_flat(self.dense).t(), share.to(self.dense)).view(self.w.shape)
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


def _flat(tensor: Float[Tensor, "groups ..."]) -> Float[Tensor, "groups numel"]:
    return tensor.reshape(len(tensor), -1)


def inner(a: PerGroup, b: PerGroup, groups: int) -> Float[Tensor, " groups"]:
    """Inner product of each group's tensors."""
    like = working(a.w.detach())
    total = like.new_zeros(groups)
    if a.absent or b.absent:
        return total
    if a.along is not None and b.along is not None:
        total = total + a.along * b.along * like.square().sum()
    for one, other in ((a, b), (b, a)):
        if one.along is not None:
            total = total + one.along * _with_w(other, groups)
    return total + _without_along(a, b, groups)


def _with_w(a: PerGroup, groups: int) -> Float[Tensor, " groups"]:
    """Inner products with the parameter itself, of what is not a multiple of it."""
    total = working(a.w.detach()).new_zeros(groups)
    if a.dense is not None:
        total = total + _flat(a.dense) @ working(a.w.detach()).reshape(-1)
    for part in a.parts:
        total = total + part.factor.product(a.matrix_of_w()[part.start : part.stop])
    return total


def _without_along(a: PerGroup, b: PerGroup, groups: int) -> Float[Tensor, " groups"]:
    mixed = (a.dense is None) != (b.dense is None) or (a.dense is not None and bool(a.parts or b.parts))
    partial = any(not (p.rows == q.rows or apart(p.rows, q.rows)) for p in a.parts for q in b.parts)
    if mixed or partial:
        one = _rest(a, groups)
        return _dots(one, one if a is b else _rest(b, groups))
    if a.dense is not None and b.dense is not None:
        return _dots(a.dense, b.dense)
    return _grams(a, b, groups)


def _rest(a: PerGroup, groups: int) -> Tensor:
    return PerGroup(a.w, None, a.dense, a.parts).whole(groups)


def _dots(a: Tensor, b: Tensor) -> Float[Tensor, " groups"]:
    """Inner products of formed tensors."""
    if a is b:
        # the one reduction that the CPU runs at the speed of its memory
        norms: Tensor = torch.linalg.vector_norm(_flat(a), dim=1)
        return norms.square()
    products: Tensor = torch.linalg.vecdot(_flat(a), _flat(b))
    return products


def _grams(a: PerGroup, b: PerGroup, groups: int) -> Float[Tensor, " groups"]:
    total = working(a.w.detach()).new_zeros(groups)
    size = torch.zeros_like(total)
    same = a is b
    for i, p in enumerate(a.parts):
        for j, q in enumerate(b.parts):
            if apart(p.rows, q.rows) or (same and j < i):
                continue
            found, absolute = gram(p.factor, q.factor)
            weight = 2.0 if same and j > i else 1.0
            total, size = total + weight * found, size + weight * absolute
    if same and bool((total < HEAVY * size).any()):
        formed = _rest(a, groups)
        return _dots(formed, formed)
    return total.clamp_(min=0) if same else total


def squared_norms(tensors: Sequence[PerGroup], groups: int) -> Float[Tensor, " groups"]:
    """Squared l2 norm of each group's tensors, all parameters together, in double precision."""
    return _total([inner(t, t, groups) for t in tensors])


def inner_products(a: Sequence[PerGroup], b: Sequence[PerGroup], groups: int) -> Float[Tensor, " groups"]:
    """Inner products of each group's tensors, all parameters together, in double precision."""
    return _total([inner(s, t, groups) for s, t in zip(a, b, strict=True)])


def _total(values: list[Tensor]) -> Tensor:
    device = values[0].device
    wide = torch.float64 if device.type != "mps" else torch.float32
    return torch.stack([v.to(device, wide) for v in values]).sum(0)


def mapped(tensors: Sequence[PerGroup], function: Callable[[PerGroup], PerGroup]) -> list[PerGroup]:
    """``function`` of each; what is absent stays so."""
    return [t if t.absent else function(t) for t in tensors]
