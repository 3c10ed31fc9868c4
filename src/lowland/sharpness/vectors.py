"""Arithmetic with one vector over all weights per trial, formed or as a sum of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.batched.factors import Factor, column, row_products
from lowland.sam.batched.norms import squared_norms
from lowland.sam.batched.per_group import Part, PerGroup
from lowland.sam.precision import working

Vector = Any
"""A vector of some :class:`Space`; ``None`` for zero."""
Factors = Float[Tensor, " trials"]
Terms = Sequence[tuple[Factors, Vector]]


@runtime_checkable
class Space(Protocol):
    """Vectors, one per trial, of which sums and inner products can be taken."""

    def gradient(self, g: list[PerGroup]) -> Vector:
        """A gradient as a vector."""

    def combined(self, terms: Terms) -> Vector:
        """The sum, each trial's vectors times its factors."""

    def inner(self, a: Vector, b: Vector) -> Factors:
        """Inner product of each trial's vectors, in float64."""

    def scaled_(self, v: Vector, factors: Factors) -> Vector:
        """Each trial's vector times its factor; ``v`` itself may be written to."""

    def added_(self, v: Vector, factors: Factors, d: Vector) -> Vector:
        """``v`` and each trial's multiple of ``d``; ``v`` itself may be written to."""

    def chosen(self, mask: Tensor, a: Vector, b: Vector) -> Vector:
        """``a`` for the trials where ``mask``, else ``b``."""

    def moves(self, v: Vector) -> list[PerGroup | None]:
        """The vector as a perturbation of the parameters."""


@dataclass(frozen=True)
class Formed:
    """Vectors that are formed: a tensor per parameter, shape ``(trials, *shape)``.

    Attributes:
        params: The parameters.
        trials: Number of trials.
    """

    params: list[Tensor]
    trials: int

    def gradient(self, g: list[PerGroup]) -> list[Tensor]:
        """The gradient, formed."""
        return [t.whole(self.trials) for t in g]

    def combined(self, terms: Terms) -> list[Tensor] | None:
        """The sum."""
        total: list[Tensor] | None = None
        for factors, v in terms:
            if v is None:
                continue
            columns = [column(factors, t) for t in v]
            if total is None:
                total = [t * c for t, c in zip(v, columns, strict=True)]
            else:
                for sum_, t, c in zip(total, v, columns, strict=True):
                    sum_.addcmul_(t, c)
        return total

    def inner(self, a: list[Tensor] | None, b: list[Tensor] | None) -> Factors:
        """Inner products."""
        if a is None or b is None:
            return torch.zeros(self.trials, dtype=torch.float64)
        dots = [_dots(s, t) for s, t in zip(a, b, strict=True)]
        return torch.stack([d.to(dots[0].device) for d in dots]).cpu().double().sum(0)

    def scaled_(self, v: list[Tensor] | None, factors: Factors) -> list[Tensor] | None:
        """The product."""
        return None if v is None else [t.mul_(column(factors, t)) for t in v]

    def added_(self, v: list[Tensor] | None, factors: Factors, d: list[Tensor]) -> list[Tensor] | None:
        """The sum."""
        if v is None:
            return self.combined([(factors, d)])
        return [t.addcmul_(s, column(factors, s)) for t, s in zip(v, d, strict=True)]

    def chosen(self, mask: Tensor, a: list[Tensor] | None, b: list[Tensor] | None) -> list[Tensor] | None:
        """One or the other."""
        if a is None and b is None:
            return None
        zeros = [torch.zeros_like(t) for t in a or b or []]
        pairs = zip(a or zeros, b or zeros, strict=True)
        return [torch.where(column(mask.double(), s) > 0, s, t) for s, t in pairs]

    def moves(self, v: list[Tensor] | None) -> list[PerGroup | None]:
        """The perturbation."""
        if v is None:
            return [None] * len(self.params)
        return [PerGroup(w, dense=t) for w, t in zip(self.params, v, strict=True)]


def _dots(a: Tensor, b: Tensor) -> Tensor:
    if a is b:  # the one reduction that the CPU runs at the speed of its memory
        norms: Tensor = torch.linalg.vector_norm(a.flatten(1), dim=1)
        return norms.square()
    found: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return found


@dataclass
class _Rows:
    """Rows of all gradients so far, shape ``(trials, count * rows, width)``, in memory that is kept.

    On a CPU, memory that was just allocated costs several times as much to write to.
    """

    memory: Tensor
    used: int = 0

    @classmethod
    def like(cls, rows: Tensor, capacity: int) -> _Rows:
        return cls(rows.new_empty(len(rows), capacity * rows.shape[1], rows.shape[2]))

    def add(self, rows: Tensor) -> None:
        self.memory[:, self.used : self.used + rows.shape[1]] = rows
        self.used += rows.shape[1]

    def all(self) -> Tensor:
        return self.memory[:, : self.used]


@dataclass
class _Use:
    """The gradients of one use of a parameter: left and right vectors, and room for scaled ones."""

    part: Part
    left: _Rows
    right: _Rows
    scaled: Tensor

    @classmethod
    def of(cls, part: Part, capacity: int) -> _Use:
        left, right = _sides(part)
        smaller = min((left, right), key=lambda t: t.shape[2])
        scaled = _Rows.like(working(smaller), capacity).memory
        return cls(part, _Rows.like(left, capacity), _Rows.like(right, capacity), scaled)

    def add(self, part: Part) -> None:
        left, right = _sides(part)
        self.left.add(left)
        self.right.add(right)

    def move(self, factors: Float[Tensor, "trials count"]) -> Part:
        """The sum; valid until the next call."""
        left, right = self.left.all(), self.right.all()
        each = factors.to(self.scaled).repeat_interleave(left.shape[1] // factors.shape[1], 1)[..., None]
        first = left.shape[2] <= right.shape[2]
        scaled = torch.mul(left if first else right, each, out=self.scaled[:, : left.shape[1]])
        factor = Factor(scaled, right) if first else Factor(left, scaled)
        return Part(factor, self.part.start, self.part.stop)

    def products(self, part: Part, count: int) -> Float[Tensor, "trials count"]:
        left, right = _sides(part)
        pairs = row_products(self.left.all(), left) * row_products(self.right.all(), right)
        return pairs.double().reshape(len(pairs), count, -1).sum(2)


def _sides(part: Part) -> tuple[Tensor, Tensor]:
    left, right = part.factor.left, part.factor.right
    assert isinstance(left, Tensor)
    assert isinstance(right, Tensor)
    return left, right


@dataclass
class _Basis:
    """The gradients of one parameter so far: what is formed, and what of each of its uses is not."""

    w: Tensor
    capacity: int
    dense: _Rows | None = None
    uses: list[_Use] = field(default_factory=list)

    def add(self, g: PerGroup) -> None:
        if g.dense is not None:
            rows = g.dense.reshape(len(g.dense), 1, -1)
            self.dense = self.dense or _Rows.like(rows, self.capacity)
            self.dense.add(rows)
        self.uses = self.uses or [_Use.of(part, self.capacity) for part in g.parts]
        for use, part in zip(self.uses, g.parts, strict=True):
            use.add(part)

    def move(self, factors: Float[Tensor, "trials count"]) -> PerGroup:
        found = PerGroup(self.w)
        if self.dense is not None:
            rows = self.dense.all()
            total = torch.bmm(factors[:, None].to(rows), rows)
            found.add_dense(total.view(len(rows), *self.w.shape))
        for use in self.uses:
            found.add_part(use.move(factors))
        return found

    def products(self, g: PerGroup, count: int) -> Float[Tensor, "trials count"]:
        """Inner products of ``g`` with each gradient of the basis, in float64."""
        total = torch.zeros(1, count, dtype=torch.float64, device=self.w.device)
        if self.dense is not None and g.dense is not None:
            flat = g.dense.reshape(len(g.dense), -1, 1)
            total = total + torch.bmm(self.dense.all(), flat)[..., 0].double()
        for use, part in zip(self.uses, g.parts, strict=True):
            total = total + use.products(part, count)
        return total


@dataclass
class Unformed:
    """Vectors in the span of the gradients seen so far, as coefficients, shape ``(trials, count)``.

    The gradient of a few examples in a layer is a product of few vectors, which is not formed; inner
    products need those of the gradients only, which are computed once.

    Attributes:
        params: The parameters.
        trials: Number of trials.
        capacity: Largest number of gradients.
    """

    params: list[Tensor]
    trials: int
    capacity: int
    _bases: list[_Basis] = field(default_factory=list)
    _gram: Float[Tensor, "trials count count"] = field(default_factory=lambda: torch.zeros(0, 0, 0))

    @property
    def count(self) -> int:
        """Number of gradients so far."""
        return int(self._gram.shape[1])

    @staticmethod
    def holds(g: list[PerGroup]) -> bool:
        """Whether gradients like ``g`` can be kept as they are."""
        return all(
            t.along is None
            and all(isinstance(p.factor.left, Tensor) and isinstance(p.factor.right, Tensor) for p in t.parts)
            for t in g
        )

    def gradient(self, g: list[PerGroup]) -> Tensor:
        """The gradient, as the last of the basis."""
        self._bases = self._bases or [_Basis(t.w, self.capacity) for t in g]
        count = self.count
        larger = torch.zeros(self.trials, count + 1, count + 1, dtype=torch.float64)
        if count:
            larger[:, :count, :count] = self._gram
            found = sum(
                (basis.products(t, count).cpu() for basis, t in zip(self._bases, g, strict=True)),
                torch.zeros(self.trials, count, dtype=torch.float64),
            )
            larger[:, count, :count] = larger[:, :count, count] = found
        larger[:, count, count] = squared_norms(g, self.trials).cpu()
        self._gram = larger
        for basis, t in zip(self._bases, g, strict=True):
            basis.add(t)
        unit = torch.zeros(self.trials, count + 1, dtype=torch.float64)
        unit[:, count] = 1.0
        return unit

    def combined(self, terms: Terms) -> Tensor | None:
        """The sum."""
        total: Tensor | None = None
        for factors, v in terms:
            if v is not None:
                scaled = self._padded(v) * factors[:, None]
                total = scaled if total is None else total + scaled
        return total

    def inner(self, a: Tensor | None, b: Tensor | None) -> Factors:
        """Inner products."""
        if a is None or b is None:
            return torch.zeros(self.trials, dtype=torch.float64)
        return torch.einsum("ti,tij,tj->t", self._padded(a), self._gram, self._padded(b))

    def scaled_(self, v: Tensor | None, factors: Factors) -> Tensor | None:
        """The product."""
        return self.combined([(factors, v)])

    def added_(self, v: Tensor | None, factors: Factors, d: Tensor) -> Tensor | None:
        """The sum."""
        return self.combined([(torch.ones_like(factors), v), (factors, d)])

    def chosen(self, mask: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        """One or the other."""
        return torch.where(mask[:, None], self._padded(a), self._padded(b))

    def moves(self, v: Tensor | None) -> list[PerGroup | None]:
        """The perturbation."""
        if v is None:
            return [None] * len(self.params)
        moves = [basis.move(self._padded(v)) for basis in self._bases]
        return [None if t.absent else t for t in moves]

    def _padded(self, v: Tensor | None) -> Tensor:
        if v is None:
            return torch.zeros(self.trials, self.count, dtype=torch.float64)
        return torch.nn.functional.pad(v, (0, self.count - v.shape[1]))
