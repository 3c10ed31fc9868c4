"""The groups of a batch, cut out of it only when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lowland.sam.batch import MicroBatches, batch_size, cut, group_slices
from lowland.sam.batched.stacked import Shapes, Stacked, leaves_of, rebuilder, shapes

Part = tuple[Any, ...]


class Grouped:
    """Groups of ``m`` consecutive examples of a batch.

    Args:
        batch: The loss's arguments, or several such parts.
        m: Examples in a group; ``None`` for all.
    """

    def __init__(self, batch: Sequence[Any] | MicroBatches, m: int | None) -> None:
        self._parts: list[Part] = list(batch) if isinstance(batch, MicroBatches) else [tuple(batch)]
        self._sizes = [batch_size(part) for part in self._parts]
        if not self._parts:
            raise ValueError("batch must hold at least one part, got none.")
        self._rows = group_slices(sum(self._sizes), m)
        self._leaves = leaves_of(self._parts[0]) if len(self._parts) == 1 else []

    def __len__(self) -> int:
        return len(self._rows)

    def group(self, i: int) -> list[Part]:
        """The i-th group, in as many parts as it lies in."""
        return self._parts if len(self) == 1 else cut(self._parts, self._sizes, self._rows[i])

    def size(self, i: int) -> int:
        """Number of examples of the i-th group."""
        rows = self._rows[i]
        return int(rows.stop - rows.start)

    def alike(self, i: int) -> tuple[Any, ...] | None:
        """What groups must have in common to be stacked; ``None`` for one that lies in several parts."""
        if len(self._parts) == 1:
            return (self.size(i),)
        parts = self.group(i)
        return shapes(parts[0]) if len(parts) == 1 else None

    def shapes(self, i: int) -> tuple[Any, Shapes]:
        """Structure and shapes of the i-th group, which lies in one part."""
        return shapes(self.group(i)[0])

    def stacked(self, indices: Sequence[int]) -> Stacked:
        """Several groups, stacked."""
        first, last = self._rows[indices[0]], self._rows[indices[-1]]
        if not self._leaves or indices[-1] - indices[0] + 1 != len(indices):
            return Stacked.of([self.group(i)[0] for i in indices])

        def grouped(leaf: Tensor) -> Tensor:
            rows = leaf[first.start : last.stop]
            return rows.reshape(len(indices), -1, *leaf.shape[1:])

        return Stacked([grouped(leaf) for leaf in self._leaves], rebuilder(self._parts[0]), len(indices))
