"""Vectors over all weights that are kept as sums of gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.precision import working
from lowland.sam.vectors.factors import Factor, column, row_products
from lowland.sam.vectors.norms import squared_norms
from lowland.sam.vectors.per_group import LowRank, PerGroup
from lowland.sharpness.vectors import Factors, Terms, peaks, powers_of_two


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

    part: LowRank
    left: _Rows
    right: _Rows
    scaled: Tensor

    @classmethod
    def of(cls, part: LowRank, capacity: int) -> _Use:
        left, right = _sides(part)
        smaller = min((left, right), key=lambda t: t.shape[2])
        scaled = _Rows.like(working(smaller), capacity).memory
        return cls(part, _Rows.like(left, capacity), _Rows.like(right, capacity), scaled)

    def add(self, part: LowRank) -> None:
        left, right = _sides(part)
        self.left.add(left)
        self.right.add(right)

    def move(self, factors: Float[Tensor, "trials count"]) -> LowRank:
        """The sum; valid until the next call."""
        left, right = self.left.all(), self.right.all()
        each = factors.to(self.scaled).repeat_interleave(left.shape[1] // factors.shape[1], 1)[..., None]
        first = left.shape[2] <= right.shape[2]
        scaled = torch.mul(left if first else right, each, out=self.scaled[:, : left.shape[1]])
        factor = Factor(scaled, right) if first else Factor(left, scaled)
        return LowRank(factor, self.part.start, self.part.stop)

    def products(self, part: LowRank, count: int) -> Float[Tensor, "trials count"]:
        left, right = _sides(part)
        pairs = row_products(self.left.all(), left) * row_products(self.right.all(), right)
        return pairs.double().reshape(len(pairs), count, -1).sum(2)


def _sides(part: LowRank) -> tuple[Tensor, Tensor]:
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

    The gradient of a few examples in a layer is a product of few vectors, which is not formed; norms need
    the inner products of the gradients only, which are computed once.

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
        g, units = _in_units(g)
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
        last = torch.zeros(self.trials, count + 1, dtype=torch.float64)
        last[:, count] = units
        return last

    def combined(self, terms: Terms) -> Tensor | None:
        """The sum."""
        total: Tensor | None = None
        for factors, v in terms:
            if v is not None:
                scaled = self._padded(v) * factors[:, None]
                total = scaled if total is None else total + scaled
        return total

    def norms(self, v: Tensor | None) -> Factors:
        """The norms."""
        if v is None:
            return torch.zeros(self.trials, dtype=torch.float64)
        padded = self._padded(v)
        return torch.einsum("ti,tij,tj->t", padded, self._gram, padded).clamp(min=0.0).sqrt()

    def scaled_(self, v: Tensor | None, factors: Factors) -> Tensor | None:
        """The product."""
        return self.combined([(factors, v)])

    def added_(self, v: Tensor | None, factors: Factors, d: Tensor) -> Tensor | None:
        """The sum."""
        return self.combined([(torch.ones_like(factors), v), (factors, d)])

    def chosen(self, mask: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        """One or the other."""
        return torch.where(mask[:, None], self._padded(a), self._padded(b))

    def moves(self, v: Tensor | None) -> list[PerGroup]:
        """The perturbation."""
        if v is None:
            return [PerGroup(w) for w in self.params]
        return [basis.move(self._padded(v)) for basis in self._bases]

    def _padded(self, v: Tensor | None) -> Tensor:
        if v is None:
            return torch.zeros(self.trials, self.count, dtype=torch.float64)
        return torch.nn.functional.pad(v, (0, self.count - v.shape[1]))


def _in_units(g: list[PerGroup]) -> tuple[list[PerGroup], Factors]:
    """A gradient in units of each trial's size, and the units: squares of less than 1e-23 would be 0.

    Where it is not finite the units are NaN and the gradient is zero, so that it reaches nothing through a
    factor of 0. Both sides of a product are in units of their own, whose product is at most that of all.
    """
    sizes = [peaks(t.dense) for t in g if t.dense is not None]
    sizes += [peaks(left) * peaks(right) for t in g for left, right in map(_sides, t.parts)]
    size = torch.stack(sizes).amax(0)
    units, finite = powers_of_two(size), size.isfinite()

    def over(t: Tensor, unit: Factors) -> Tensor:
        wide = working(t)
        found = (wide / column(unit, wide)).to(t.dtype)
        return found if bool(finite.all()) else torch.where(column(finite.double(), t) > 0, found, 0.0)

    def part_over(part: LowRank) -> LowRank:
        left, right = _sides(part)
        own = powers_of_two(peaks(right))
        return LowRank(Factor(over(left, units / own), over(right, own)), part.start, part.stop)

    found = [
        PerGroup(
            t.w,
            dense=None if t.dense is None else over(t.dense, units),
            parts=[part_over(part) for part in t.parts],
        )
        for t in g
    ]
    return found, torch.where(finite, units, torch.nan)
