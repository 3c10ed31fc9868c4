"""Arithmetic with one vector over all weights per trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.vectors.factors import column
from lowland.sam.vectors.per_group import PerGroup

Vector = Any
"""A vector of some :class:`Space`; ``None`` for zero."""
Factors = Float[Tensor, " trials"]
Terms = Sequence[tuple[Factors, Vector]]


@runtime_checkable
class Space(Protocol):
    """Vectors, one per trial, of which sums and norms can be taken."""

    def gradient(self, g: list[PerGroup]) -> Vector:
        """A gradient as a vector."""

    def combined(self, terms: Terms) -> Vector:
        """The sum, each trial's vectors times its factors."""

    def norms(self, v: Vector) -> Factors:
        """The l2 norm of each trial's vector, in float64; not finite where the vector is not."""

    def scaled_(self, v: Vector, factors: Factors) -> Vector:
        """Each trial's vector times its factor; ``v`` itself may be written to."""

    def added_(self, v: Vector, factors: Factors, d: Vector) -> Vector:
        """``v`` and each trial's multiple of ``d``; ``v`` itself may be written to."""

    def chosen(self, mask: Tensor, a: Vector, b: Vector) -> Vector:
        """``a`` for the trials where ``mask``, else ``b``; perhaps one of them itself."""

    def moves(self, v: Vector) -> list[PerGroup]:
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

    def norms(self, v: list[Tensor] | None) -> Factors:
        """The norms; where squares may have left the range of the type, once more in units of the vectors."""
        if v is None:
            return torch.zeros(self.trials, dtype=torch.float64)
        found = _norms(v)
        limits = max((torch.finfo(t.dtype) for t in v), key=lambda found: found.tiny)
        if bool(((found > limits.tiny**0.5 / limits.eps) & (found < limits.max**0.5)).all()):
            return found
        units = powers_of_two(torch.stack([peaks(t) for t in v]).amax(0))
        return units * _norms([t / column(units, t) for t in v])

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
        if a is not None and bool(mask.all()):
            return a
        if b is not None and not bool(mask.any()):
            return b
        zeros = [torch.zeros_like(t) for t in a or b or []]
        pairs = zip(a or zeros, b or zeros, strict=True)
        return [torch.where(column(mask.double(), s) > 0, s, t) for s, t in pairs]

    def moves(self, v: list[Tensor] | None) -> list[PerGroup]:
        """The perturbation."""
        if v is None:
            return [PerGroup(w) for w in self.params]
        return [PerGroup(w, dense=t) for w, t in zip(self.params, v, strict=True)]


def _norms(v: list[Tensor]) -> Factors:
    norms = [torch.linalg.vector_norm(t.flatten(1), dim=1).cpu().double() for t in v]
    found: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return found


def peaks(t: Float[Tensor, "trials ..."]) -> Factors:
    """The size of each trial's largest entry, in float64."""
    found: Tensor = t.new_zeros(len(t)) if t.numel() == 0 else t.flatten(1).abs().amax(1)
    return found.cpu().double()


def powers_of_two(sizes: Factors) -> Factors:
    """Units in which ``sizes`` are from 1/2 to 1, exactly; 1 for what is zero or not finite."""
    usable = sizes.isfinite() & (sizes > 0.0)
    one = torch.ones_like(sizes)
    return torch.ldexp(one, torch.frexp(torch.where(usable, sizes, one)).exponent)
