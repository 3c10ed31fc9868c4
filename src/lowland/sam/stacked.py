"""Groups of the same shapes, one axis before their examples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batch import UNNAMED, Entries, rows_of, with_rows
from lowland.sam.containers import is_container, items

Part = tuple[Any, ...]
Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class Stacked:
    """Several groups of the same structure and shapes.

    Attributes:
        leaves: Their tensors, shape ``(groups, m, ...)``.
        rebuild: Makes the loss's arguments of one group from one tensor per leaf.
        groups: Number of groups.
        examples: Number of examples of each.
    """

    leaves: list[Tensor]
    rebuild: Callable[[Sequence[Tensor]], Part]
    groups: int
    examples: int

    @classmethod
    def of(cls, parts: Sequence[Part], entries: Entries = UNNAMED) -> Stacked:
        """The groups ``parts``, one part each."""
        columns = zip(*([leaf for _, leaf in rows_of(part, entries)] for part in parts), strict=True)
        leaves = [torch.stack(column) for column in columns]
        return cls(leaves, rebuilder(parts[0], entries), len(parts), leaves[0].shape[1])

    def copied(self) -> Stacked:
        """The same in memory of its own."""
        return Stacked([leaf.clone() for leaf in self.leaves], self.rebuild, self.groups, self.examples)


def rebuilder(element: Any, entries: Entries = UNNAMED) -> Callable[[Sequence[Any]], Any]:
    """What puts others in the places of the entries of ``element`` that are cut."""

    def rebuild(leaves: Sequence[Any]) -> Any:
        rest = iter(leaves)
        return with_rows(element, lambda _: next(rest), entries)

    return rebuild


def shapes(part: Part, entries: Entries = UNNAMED) -> tuple[Any, Shapes]:
    """What two groups must have in common to be stacked."""
    rows = tuple((tuple(t.shape), t.dtype) for _, t in rows_of(part, entries))
    return _structure(part), rows


def _structure(element: Any) -> Hashable:
    if isinstance(element, Tensor):
        return "tensor"
    if is_container(element):
        return type(element).__name__, tuple((key, _structure(value)) for key, value in items(element))
    return element if isinstance(element, (str, bytes, int, float, bool)) else type(element).__name__
