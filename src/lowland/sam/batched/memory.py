"""How many groups are run at once, so that they fit the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowland.sam.vectors.per_group import PerGroup

ALLOWANCE = 2.0
"""Peak memory by default, in units of what ordinary SAM needs for the same batch."""


@dataclass
class Saved:
    """Memory that a backward pass holds on to.

    Attributes:
        bytes: Of tensors that are not parameters or the batch itself.
    """

    known: set[int]
    seen: set[int] = field(default_factory=set)
    bytes: int = 0

    def note(self, tensor: Tensor) -> Tensor:
        """Adds the storage of ``tensor`` if it is new, and returns the tensor."""
        storage = tensor.untyped_storage() if tensor.layout == torch.strided else None
        if storage is not None and storage.data_ptr() not in self.known | self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


@contextmanager
def saved_bytes(known: Sequence[Tensor]) -> Iterator[Saved]:
    """Counts what is saved for a backward pass inside the block."""
    saved = Saved({t.untyped_storage().data_ptr() for t in known})
    with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda t: t):
        yield saved


def held_bytes(gradient: Sequence[PerGroup]) -> tuple[int, int]:
    """Memory of recorded gradients: what is formed, and what is not."""
    formed = sum(g.dense.numel() * g.dense.element_size() for g in gradient if g.dense is not None)
    kept = [t for g in gradient for part in g.parts for t in part.factor.tensors()]
    return formed, sum(t.numel() * t.element_size() for t in kept)


def groups_at_once(
    groups: int, *, saved: int, formed: int, kept: int, params: int, max_memory: int | None
) -> int:
    """The largest number of groups whose passes stay within ``max_memory`` bytes.

    Ordinary SAM holds what a pass over the whole batch saves, a copy of the weights and two gradients.
    All groups at once hold what they recorded while they save again for the perturbed pass.

    Args:
        groups: Number of groups in the batch.
        saved: Bytes that the pass over one group saves.
        formed: Bytes of its formed gradients, which become its perturbed weights.
        kept: Bytes of its gradients that are not formed.
        params: Bytes of the parameters.
        max_memory: The limit; ``None`` for :data:`ALLOWANCE` times ordinary SAM.
    """
    ordinary = groups * saved + 3 * params
    budget = 0.9 * (
        ALLOWANCE * ordinary if max_memory is None else max_memory
    )  # what operations need besides
    return fitting(groups, saved + kept + formed, budget - params)


def fitting(groups: int, each: int, budget: float) -> int:
    """The number of groups in chunks of about the same size, of groups that take ``each`` bytes."""
    most = max(1, min(groups, int(budget // max(each, 1))))
    return math.ceil(groups / math.ceil(groups / most))
