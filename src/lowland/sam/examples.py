"""The examples of a group, the same in every pass although a loss may change what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batch import UNNAMED, Entries, batch_size
from lowland.sam.containers import clone, copied

Part = tuple[Any, ...]
"""The loss's arguments."""

SMALL = 2**16
"""Bytes of a tensor up to which its copy costs less than to find out whether it was needed."""


class Examples:
    """The examples of a group, in one part or several.

    Args:
        parts: The parts; :class:`~lowland.sam.MicroBatches` are loaded anew in each pass.
        entries: Entries of the batch that were named.
        sizes: Numbers of examples of the parts, if they are known.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        entries: Entries = UNNAMED,
        sizes: Sequence[int | None] | None = None,
    ) -> None:
        self._parts = parts
        self._entries = entries
        self._sizes = sizes
        self._pristine: list[Part] | None = None
        self._kept = False
        self._unchanged: set[int] = set()

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def sized(self) -> Iterator[tuple[Part, int | None]]:
        """The parts themselves, each with its number of examples; ``None`` where that cannot be told."""
        for i, part in enumerate(self._parts):
            yield part, batch_size(part, self._entries) if self._sizes is None else self._sizes[i]

    def own(self, *, again: bool) -> Iterator[tuple[Part, int | None]]:
        """The parts themselves, for the pass that stands for plain training and may change them.

        Args:
            again: Whether another pass follows, for which what they were is kept.
        """
        pristine: list[Part] = []
        sizes = []
        for part, size in self.sized():
            sizes.append(size)
            kept: dict[int, Tensor] = {}
            if again:
                pristine.append(copied(part, partial(_kept, kept=kept)))
            yield part, size
            if kept:
                pristine[-1] = copied(pristine[-1], partial(self._needed, kept=kept))
        if again:
            self._pristine, self._sizes = pristine, sizes

    def copies(self, *, last: bool = False) -> Iterator[tuple[Part, int | None]]:
        """Copies of the parts as they were before any pass; of what no pass changed, only if it is small.

        Args:
            last: Whether no pass follows, so that what was kept need not be copied once more.
        """
        if self._pristine is not None:
            self._parts, self._pristine, self._kept = self._pristine, None, True
        for part, size in self.sized():
            yield part if last and self._kept else copied(part, self._copy), size

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor if id(tensor) in self._unchanged else clone(tensor)

    def _needed(self, copy: Tensor, kept: dict[int, Tensor]) -> Tensor:
        """``copy``, or the user's own tensor if the pass left it as it was."""
        own = kept.get(id(copy))
        if own is None or own.layout != torch.strided or not torch.equal(own, copy):
            return copy
        self._unchanged.add(id(own))
        return own


def _kept(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """A copy, noted if it is so large that it is not to be kept for nothing."""
    copy = clone(tensor)
    if copy is not tensor and copy.numel() * copy.element_size() > SMALL:
        kept[id(copy)] = tensor
    return copy
