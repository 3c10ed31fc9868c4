"""How many groups are run at once, so that they fit the memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowland.sam.batched.level import unwrapped
from lowland.sam.place import place_of
from lowland.sam.private import is_in_vmap, unseen_by_modes
from lowland.sam.vectors.per_group import PerGroup

ALLOWANCE = 1.05
"""Peak memory by default, in units of what plain training with Adam takes for the same batch."""

SMALL = 2**25
"""Bytes that are not worth the time of another chunk."""

REST = 0.9
"""Share of a limit that is planned with: operations need some memory besides."""


@dataclass
class Saved:
    """Memory that a backward pass holds on to."""

    _sizes: dict[int, int] = field(default_factory=dict)

    def note(self, tensor: Tensor) -> Tensor:
        """Takes note of the storage of ``tensor``, and returns the tensor."""
        with unseen_by_modes():
            whole = unwrapped(tensor) if is_in_vmap(tensor) else tensor
            if whole.layout == torch.strided:
                self._sizes[place_of(whole)] = whole.untyped_storage().nbytes()
        return tensor

    def bytes(self, known: Iterable[Tensor]) -> int:
        """Its size, without what is ``known``: parameters, trained or not, buffers, and the batch."""
        places = {place_of(t) for t in known}
        return sum(size for place, size in self._sizes.items() if place not in places)


@contextmanager
def what_is_saved() -> Iterator[Saved]:
    """Counts what is saved for a backward pass inside the block."""
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda t: t):
        yield saved


def held_bytes(gradient: Sequence[PerGroup]) -> int:
    """Memory of recorded gradients, formed or not: what several share counts once."""
    formed = [g.dense for g in gradient if g.dense is not None]
    kept = [t for g in gradient for part in g.parts for t in part.factor.tensors()]
    return sum({place_of(t): t.untyped_storage().nbytes() for t in formed + kept}.values())


@dataclass(frozen=True)
class Needs:
    """Bytes that a call takes above its weights.

    Attributes:
        groups: Number of groups in the batch.
        saved: Of what the pass over one group saves for its backward pass.
        recorded: Of the gradient of one group as it is recorded, which becomes its perturbation.
        gradient: Of a gradient of all parameters.
        mean: Of the mean of such gradients.
    """

    groups: int
    saved: int
    recorded: int
    gradient: int
    mean: int

    def at_once(self, chunk: int) -> int:
        """The peak with so many groups at once.

        They hold what they recorded while they save again for the perturbed pass, whose backward pass frees
        both; where there are several chunks, the mean of those before is there too.
        """
        mean = self.mean if chunk < self.groups else 0
        return mean + max(chunk * (self.saved + self.recorded), self.gradient)

    def allowed(self) -> float:
        """Bytes within :data:`ALLOWANCE` of plain training, less Adam's state; at least :data:`SMALL`."""
        plain = self.groups * self.saved + 4 * self.gradient
        return max(ALLOWANCE * plain - 3 * self.gradient, SMALL)

    def groups_at_once(self, max_memory: int | None) -> int:
        """How many groups are run at once: as many as fit, in chunks of about the same size.

        The loop, with its copy of the weights, takes more than one group after the other does here.

        Args:
            max_memory: The limit; ``None`` for what is allowed, or the least that there is.

        Raises:
            ValueError: If nothing stays within ``max_memory``.
        """
        sizes = sorted({math.ceil(self.groups / k) for k in range(1, self.groups + 1)}, reverse=True)
        limit = self.allowed() if max_memory is None else REST * max_memory
        fitting = next((size for size in sizes if self.at_once(size) <= limit), None)
        if fitting is not None:
            return fitting
        best = min(sizes, key=self.at_once)
        if max_memory is None:
            return best
        least = self.at_once(best)
        raise ValueError(
            f"max_memory must be at least {math.ceil(least / REST)} bytes for this batch, got {max_memory} "
            "(engine='loop' has no limit)."
        )


def fitting(groups: int, each: int, budget: float) -> int:
    """The number of groups in chunks of about the same size, of groups that take ``each`` bytes."""
    most = max(1, min(groups, int(budget // max(each, 1))))
    return math.ceil(groups / math.ceil(groups / most))
