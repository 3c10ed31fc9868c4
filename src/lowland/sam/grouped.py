"""The groups of a batch, cut out of it only when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batch import (
    UNNAMED,
    Entries,
    MicroBatches,
    batch_size,
    group_slices,
    num_examples,
    rows_of,
    take,
)
from lowland.sam.carried import carry_over
from lowland.sam.containers import holds_same, is_container, mapped
from lowland.sam.examples import Examples
from lowland.sam.stacked import Shapes, Stacked, rebuilder, shapes

Part = tuple[Any, ...]


class Grouped:
    """Groups of ``m`` consecutive examples of a batch.

    Args:
        batch: The loss's arguments, or several such parts.
        m: Examples in a group; ``None`` for all, whose entries may then be anything.
        entries: Entries that were named.

    Attributes:
        m: Examples in a group, if they are cut.
        parts: The parts.
    """

    def __init__(
        self, batch: Sequence[Any] | MicroBatches, m: int | None, entries: Entries = UNNAMED
    ) -> None:
        self.entries, self.m = entries, m
        self.parts: list[Part] = list(batch) if isinstance(batch, MicroBatches) else [tuple(batch)]
        if not self.parts:
            raise ValueError("batch must hold at least one part, got none.")
        self._part_sizes: list[int | None] = []
        self._sizes: list[int] | None = None
        if m is None:
            self._part_sizes = [batch_size(part, entries) for part in self.parts]
            known = [size for size in self._part_sizes if size is not None]
            self._sizes = known if len(known) == len(self.parts) else None
            self._rows = [slice(0, 0 if self._sizes is None else sum(self._sizes))]
        else:
            self._sizes = [num_examples(part, entries) for part in self.parts]
            self._part_sizes = [*self._sizes]
            self._rows = group_slices(sum(self._sizes), m)
        self._can_change = any(is_container(value) for part in self.parts for value in part)
        self._changed: list[tuple[int, Any, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def group(self, i: int) -> Examples:
        """The i-th group, in as many parts as it lies in."""
        if len(self) == 1:
            return Examples(self.parts, self.entries, self._part_sizes)
        pieces = self._pieces(self._rows[i])
        return Examples([piece for _, piece, _ in pieces], self.entries, [size for *_, size in pieces])

    @contextmanager
    def lent(self, i: int) -> Iterator[Examples]:
        """The i-th group for the block, which may change its containers."""
        if len(self) == 1 or not self._can_change:
            yield self.group(i)
            return
        pieces = self._pieces(self._rows[i])
        given = [mapped(lambda t: t, piece) for _, piece, _ in pieces]
        yield Examples([piece for _, piece, _ in pieces], self.entries, [size for *_, size in pieces])
        self._changed += [
            (k, before, piece)
            for (k, piece, _), before in zip(pieces, given, strict=True)
            if not holds_same(piece, before)
        ]

    def carry_over(self) -> None:
        """Does to the user's containers what was done to those of the groups."""
        for k, own in enumerate(self.parts):
            changed = [(given, left) for part, given, left in self._changed if part == k]
            if changed:
                carry_over(own, [given for given, _ in changed], [left for _, left in changed])

    def part(self, i: int) -> Part:
        """The i-th group, which lies in one part."""
        (part,) = self.group(i)
        return part

    @cached_property
    def sizes(self) -> list[int | None]:
        """Numbers of examples of the groups; ``None`` where the batch does not tell them."""
        return [None if self._sizes is None else int(rows.stop - rows.start) for rows in self._rows]

    def size(self, i: int) -> int | None:
        """Number of examples of the i-th group."""
        return self.sizes[i]

    def alike(self, i: int) -> tuple[Any, ...] | None:
        """What groups must have in common to be stacked; ``None`` for one that lies in several parts."""
        if len(self.parts) == 1:
            return (self.size(i),)
        parts = list(self.group(i))
        return shapes(parts[0], self.entries) if len(parts) == 1 else None

    def reason_against(self) -> str | None:
        """Why groups cannot be stacked, whatever the loss."""
        if self._sizes is None:
            return "a batch whose entries do not tell the number of examples"
        for part in self.parts:
            for path, value in rows_of(part, self.entries):
                if not isinstance(value, Tensor):
                    return f"a sequence of examples that is no tensor, {path!r}"
                if value.layout != torch.strided:
                    return f"a tensor of examples that is not strided, {path!r}"
        return None

    def shapes(self, i: int) -> tuple[Any, Shapes]:
        """Structure and shapes of the i-th group, which lies in one part."""
        return shapes(self.part(i), self.entries)

    def stacked(self, indices: Sequence[int]) -> Stacked:
        """Several groups, stacked."""
        first, last = self._rows[indices[0]], self._rows[indices[-1]]
        if len(self.parts) > 1 or indices[-1] - indices[0] + 1 != len(indices):
            return Stacked.of([self.part(i) for i in indices], self.entries)

        def grouped(leaf: Tensor) -> Tensor:
            rows = leaf[first.start : last.stop]
            return rows.reshape(len(indices), -1, *leaf.shape[1:])

        (part,) = self.parts
        leaves = [grouped(leaf) for _, leaf in rows_of(part, self.entries)]
        rebuild, size = rebuilder(part, self.entries), first.stop - first.start
        return Stacked(leaves, rebuild, len(indices), size, part, self.entries)

    def _pieces(self, rows: slice) -> list[tuple[int, Part, int]]:
        """The examples ``rows``, counted across the parts, the parts that they are of, and how many."""
        assert self._sizes is not None
        found, begin = [], 0
        for k, (part, size) in enumerate(zip(self.parts, self._sizes, strict=True)):
            first, last = max(rows.start - begin, 0), min(rows.stop - begin, size)
            if first < last:
                found.append((k, take(part, slice(first, last), self.entries), last - first))
            begin += size
        return found
