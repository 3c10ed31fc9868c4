"""Groups of the same shapes, one axis before their examples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batch import UNNAMED, Entries, rows_of, with_rows
from lowland.sam.containers import is_container, items, tensors_of

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
        part: The arguments that everything else is taken from, which all groups have in common.
        entries: Entries of the batch that were named.
    """

    leaves: list[Tensor]
    rebuild: Callable[[Sequence[Tensor]], Part]
    groups: int
    examples: int
    part: Part = ()
    entries: Entries = UNNAMED

    def beside(self) -> list[Tensor]:
        """Tensors that every group is given whole."""
        rows = {id(t) for _, t in rows_of(self.part, self.entries)}
        return [t for t in tensors_of(self.part) if id(t) not in rows]

    @classmethod
    def of(cls, parts: Sequence[Part], entries: Entries = UNNAMED) -> Stacked:
        """The groups ``parts``, one part each."""
        columns = zip(*([leaf for _, leaf in rows_of(part, entries)] for part in parts), strict=True)
        leaves = [torch.stack(column) for column in columns]
        rebuild = rebuilder(parts[0], entries)
        return cls(leaves, rebuild, len(parts), leaves[0].shape[1], parts[0], entries)

    def copied(self) -> Stacked:
        """The same in memory of its own."""
        return replace(self, leaves=[leaf.clone() for leaf in self.leaves])


def rebuilder(element: Any, entries: Entries = UNNAMED) -> Callable[[Sequence[Any]], Any]:
    """What puts others in the places of the entries of ``element`` that are cut."""

    def rebuild(leaves: Sequence[Any]) -> Any:
        rest = iter(leaves)
        return with_rows(element, lambda _: next(rest), entries)

    return rebuild


def shapes(part: Part, entries: Entries = UNNAMED) -> tuple[Any, Shapes]:
    """What two groups must have in common to be stacked."""
    rows = tuple((tuple(t.shape), t.dtype) for _, t in rows_of(part, entries))
    return structure(part), rows


def structure(element: Any) -> Hashable:
    """What containers hold, in the places of tensors and of other things what kind they are."""
    if isinstance(element, Tensor):
        return "tensor"
    if is_container(element):
        return type(element).__name__, tuple((key, structure(value)) for key, value in items(element))
    plain = isinstance(element, (str, bytes, bool, int, float, complex))
    return type(element), repr(element) if plain else None
