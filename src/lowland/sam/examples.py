"""The examples of a group, the same in every pass although a loss may change what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """

    def __init__(self, parts: Iterable[Part], entries: Entries = UNNAMED) -> None:
        self._parts = parts
        self._entries = entries
        self._pristine: list[Part] | None = None
        self._unchanged: set[int] = set()

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def size(self, part: Part) -> int | None:
        """Number of examples of a part; ``None`` where it cannot be told."""
        return batch_size(part, self._entries)

    def own(self, *, again: bool) -> Iterator[Part]:
        """The parts themselves, for the pass that stands for plain training and may change them.

        Args:
            again: Whether another pass follows, for which what they were is kept.
        """
        pristine: list[Part] = []
        for part in self._parts:
            kept: dict[int, Tensor] = {}
            if again:
                pristine.append(copied(part, partial(_kept, kept=kept)))
            yield part
            if kept:
                pristine[-1] = copied(pristine[-1], partial(self._needed, kept=kept))
        if again:
            self._pristine = pristine

    def copies(self) -> Iterator[Part]:
        """Copies of the parts as they were before any pass; of what no pass changed, only if it is small."""
        for part in self._parts if self._pristine is None else self._pristine:
            yield copied(part, lambda t: t if id(t) in self._unchanged else clone(t))

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
