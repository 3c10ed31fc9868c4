"""The vector of one group whose tensors are this rank's shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import Shard

from lowland.sam.norm import l2_norm
from lowland.sam.vectors import One, Shown

Added = Callable[[Sequence[float]], list[float]]
"""Sums over the ranks that hold a model once of numbers that each has of its shards."""


def added_over(mesh: Any, placements: Sequence[Any], device: torch.device) -> Added:
    """What adds numbers up over the ranks of a mesh that hold different shards; replicas count once."""
    groups = [mesh.get_group(i) for i, placement in enumerate(placements) if isinstance(placement, Shard)]

    def added(numbers: Sequence[float]) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64, device=device)
        for group in groups:
            dist.all_reduce(total, group=group)
        return [float(x) for x in total.tolist()]

    return added


class Shards(One):
    """A vector whose norms and inner products are those of all shards together.

    Args:
        tensors: The shards of this rank.
        factor: A number that they are multiplied with.
        at: The weights that they belong to.
        norm: The l2 norm over all ranks, if it is known.
        added: Adds up over ranks.
    """

    def __init__(
        self,
        tensors: Sequence[Any],
        factor: float = 1.0,
        at: Shown | None = None,
        norm: float | None = None,
        *,
        added: Added,
    ) -> None:
        super().__init__(tensors, factor, at, norm)
        self._added = added

    def _of(
        self,
        tensors: Sequence[Any],
        factor: float = 1.0,
        at: Shown | None = None,
        norm: float | None = None,
    ) -> Shards:
        return Shards(tensors, factor, at, norm, added=self._added)

    def norm(self) -> float:
        """The l2 norm over all ranks."""
        if self._norm is None:
            there = [t for t in self.tensors if t is not None]
            own = l2_norm(there).item() if there else 0.0
            (square,) = self._added([own * own])
            self._norm = abs(self.factor) * math.sqrt(square)
        return self._norm

    def cosine(self, other: One) -> float:
        """The cosine over all ranks; NaN if one vector is zero or not finite."""
        s, t = self.norm(), other.norm()
        (product,) = self._added([_product(self, other, s * t)])
        return product if 0.0 < s < math.inf and 0.0 < t < math.inf else math.nan


def _product(a: One, b: One, lengths: float) -> float:
    """The inner product of a rank's shards over the product of the lengths of the whole vectors."""
    if not 0.0 < lengths < math.inf:
        return 0.0
    pairs = [(s, t) for s, t in zip(a.formed(), b.formed(), strict=True) if not (s is None or t is None)]
    return float(sum((_wide(s) * _wide(t)).sum() / lengths for s, t in pairs))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64)
