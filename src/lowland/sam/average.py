"""Weighted means of gradients that come one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowland.sam.precision import working

Gradients = list[Tensor | None]
"""One gradient per parameter; ``None`` where the loss did not use it."""


class Average:
    """The mean, weighted, of lists of gradients, in float32 or better; an absent gradient counts as zero.

    Of a single list it is that, in its own type.

    Attributes:
        weight: Sum of the weights so far.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._mean: Gradients = []
        self._own = False

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None], weight: float) -> None:
        """Takes ``gradients`` into the mean. The first ones are kept as they are, not copied."""
        self.weight += weight
        share = weight / self.weight
        if not self._mean:
            self._mean = list(gradients)
            return
        means, others = _all_dense(self._mean), _all_dense(gradients)
        if self._own and means and [m.dtype for m in means] == [g.dtype for g in others]:
            torch._foreach_lerp_(means, others, share)
            return
        self._own = bool(means and others)
        del means, others
        for i, b in enumerate(gradients):  # one by one: what was there goes as it is replaced
            self._mean[i] = _mean_of(self._mean[i], b, share)

    def result(self) -> Gradients:
        """The mean."""
        return self._mean


def dense(gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
    """``gradients`` with zeros in place of absent ones and of what is left out in sparse ones."""
    return [
        torch.zeros_like(working(p)) if g is None else g.to_dense()
        for g, p in zip(gradients, params, strict=True)
    ]


def _all_dense(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """``tensors`` if all are there and dense, otherwise none."""
    found = [t for t in tensors if t is not None and not t.is_sparse]
    return found if len(found) == len(tensors) else []


def _mean_of(a: Tensor | None, b: Tensor | None, share: float) -> Tensor | None:
    a, b = (None if t is None else working(t) for t in (a, b))
    if a is not None and b is not None and not (a.is_sparse or b.is_sparse):
        return torch.lerp(a, b, share)
    parts = [t * s for t, s in ((a, 1.0 - share), (b, share)) if t is not None]
    if not parts:
        return None
    parts.sort(key=lambda t: t.is_sparse)  # dense + sparse is there, sparse + dense is not
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
