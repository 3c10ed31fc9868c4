"""The vector of one group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lowland.sam.norm import l2_norm
from lowland.sam.precision import working
from lowland.sam.vectors.number import Number, largest_factor
from lowland.sam.vectors.shown import Shown
from lowland.sam.vectors.vector import Vector


class One(Vector):
    """``factor * tensor`` for every one of ``tensors``, multiplied only when an element is asked for.

    What moves the weights multiplies and adds in one go, so that a climb along the gradient needs no
    copy of it.

    Args:
        tensors: The tensors; not written to. Of a gradient of all parameters absent ones are ``None``.
        factor: The number.
        at: The weights that they belong to, where an ascent was shown some.
        norm: The l2 norm, if it is known.

    Example:
        >>> list(One([torch.ones(2)], 3.0))
        [tensor([3., 3.])]
    """

    def __init__(
        self,
        tensors: Sequence[Any],
        factor: float = 1.0,
        at: Shown | None = None,
        norm: float | None = None,
    ) -> None:
        self.tensors = tensors
        self.factor = factor
        self.at = at
        self._norm = norm

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> One:
        """Tensors as a vector, if they are none yet."""
        return tensors if isinstance(tensors, One) else cls(tensors)

    @classmethod
    def along(cls, at: Shown, gradients: Sequence[Tensor | None], *, by_row: bool, absent_too: bool) -> One:
        """The gradient of the weights ``at``, of the fewer if some of theirs are absent or sparse.

        Args:
            at: The weights.
            gradients: One per parameter of the model.
            by_row: Whether of sparse ones only the rows that are there are shown.
            absent_too: Whether zeros stand for absent ones, which are left out otherwise.
        """
        own = [gradients[i] for i in at.indices]
        if all(g is not None and not g.is_sparse for g in own):
            return cls(own, at=at)
        kept = [k for k, g in enumerate(own) if absent_too or g is not None]
        pieces = [_piece(at.params[k], own[k], by_row=by_row) for k in kept]
        return cls([g for _, g, _ in pieces], at=at.only(kept, [(w, rows) for w, _, rows in pieces]))

    def everywhere(self) -> One:
        """A perturbation of what an ascent was shown as one of whole parameters, each in its own radius."""
        at = self.at
        if at is None or at.whole:
            return self
        parts = zip(at.params, self.tensors, at.ratios, at.rows, strict=True)
        return self._of(
            [_whole(p, t if r == 1.0 else t * r, rows) for p, t, r, rows in parts], self.factor, at
        )

    def asked(self, ascent: Callable[[Any], Any], step: Any) -> One | None:
        """What ``ascent`` makes of a step along this vector."""
        found = ascent(step) if len(self) else None
        return None if found is None else self.like(found)

    def like(self, found: Sequence[Tensor]) -> One:
        """What an ascent returned, as a vector of the same weights."""
        if isinstance(found, One):
            if found.at is self.at:
                return found
            return self._of(found.tensors, found.factor, self.at, found._norm)
        return self._of(found, at=self.at)

    def _of(
        self,
        tensors: Sequence[Any],
        factor: float = 1.0,
        at: Shown | None = None,
        norm: float | None = None,
    ) -> One:
        """Another vector of the same kind."""
        return One(tensors, factor, at, norm)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._of(self.tensors[index], self.factor)
        return self.tensors[index] if self.factor == 1.0 else self.tensors[index] * self.factor

    def __len__(self) -> int:
        return len(self.tensors)

    def norm(self) -> float:
        """The l2 norm."""
        if self._norm is None:
            there = [t for t in self.tensors if t is not None]
            self._norm = abs(self.factor) * l2_norm(there).item() if there else 0.0
        return self._norm

    def cosine(self, other: One) -> float:
        """The cosine between two vectors; NaN if one is zero or not finite.

        It is the inner product of both at length 1: products of small entries underflow.
        """
        s, t = (v.norm() / abs(v.factor) if v.factor else 0.0 for v in (self, other))
        if not (0.0 < s < math.inf and 0.0 < t < math.inf):
            return math.nan
        pairs = [
            (a, b) for a, b in zip(self.tensors, other.tensors, strict=True) if not (a is None or b is None)
        ]
        terms = [(a.to_dense() / s * (b.to_dense() / t)).sum(dtype=torch.float64) for a, b in pairs]
        return float(sum(terms))

    def is_finite(self) -> bool:
        """Whether the norm is."""
        return math.isfinite(self.norm())

    @property
    def is_known_zero(self) -> bool:
        """Whether the norm is known to be 0."""
        return self.factor == 0.0 or self._norm == 0.0

    def spent(self) -> One:
        """The same, while this one, if it is not kept, holds its tensors no longer."""
        if self.kept:
            return self
        found, self.tensors = self._of(self.tensors, self.factor, self.at, self._norm), ()
        return found

    def scaled(self, factor: Number) -> One:
        """The product, not formed."""
        assert not isinstance(factor, Tensor)
        norm = None if self._norm is None else self._norm * abs(factor)
        return self._of(self.tensors, self.factor * factor, self.at, norm)

    def unscaled(self, scale: float) -> One:
        """The vector without a scale; formed where the number would be too small for float32."""
        if scale == 1.0:
            return self
        found = self.scaled(1.0 / scale)
        return found if _LEAST < found.factor < 1.0 / _LEAST else self._of(list(found), at=self.at)

    def plus(self, other: One) -> One:
        """The sum, formed."""
        if all(t is not None and not t.is_sparse for t in (*self.tensors, *other.tensors)):
            total: list[Any] = list(torch._foreach_add(list(self), list(other.tensors), alpha=other.factor))
        else:
            total = [_sum(a, b) for a, b in zip(self.formed(), other.formed(), strict=True)]
        return self._of(total, at=other.at)

    def times(self, units: Sequence[Tensor | None]) -> One:
        """The product, formed: the number first, for the product without it may underflow."""
        pairs = zip(self, units, strict=True)
        return self._of(
            [t if u is None else t * u for t, u in pairs],
            at=self.at,
            norm=0.0 if self.is_known_zero else None,
        )

    @property
    def largest_factor(self) -> float:
        """The largest number that all tensors can be multiplied with."""
        return largest_factor(t.dtype for t in self.tensors)

    def formed(self) -> list[Tensor | None]:
        """The tensors, the absent ones too."""
        if self.factor == 1.0:
            return list(self.tensors)
        return [None if t is None else t * self.factor for t in self.tensors]


_LEAST = 2.0**-30
"""Factors from this on leave products with any gradient in the range of float32."""


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return b + a if a.is_sparse else a + b  # dense + sparse is there, sparse + dense is not


def _piece(p: Tensor, g: Tensor | None, *, by_row: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """What is shown of a parameter, of its gradient, and which rows."""
    if g is None:
        return p, torch.zeros_like(working(p)), None
    if g.is_sparse and by_row and g.sparse_dim() == 1:
        g = g.coalesce()
        rows = g.indices()[0]
        return p.detach().index_select(0, rows), g.values(), rows
    return p, g.to_dense() if g.is_sparse else g, None


def _whole(p: Tensor, e: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return e
    return torch.sparse_coo_tensor(rows[None], e, p.shape, is_coalesced=True, check_invariants=False)
