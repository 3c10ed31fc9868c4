"""Groups of the same shapes, one axis before their examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batch import mapped_tensors

Part = tuple[Any, ...]
Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class Stacked:
    """Several groups of the same structure and shapes.

    Attributes:
        leaves: Their tensors, shape ``(groups, m, ...)``.
        rebuild: Makes the loss's arguments of one group from one tensor per leaf.
        groups: Number of groups.
    """

    leaves: list[Tensor]
    rebuild: Callable[[Sequence[Tensor]], Part]
    groups: int

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Stacked:
        """The groups ``parts``, one part each."""
        columns = zip(*(leaves_of(part) for part in parts), strict=True)
        return cls([torch.stack(column) for column in columns], rebuilder(parts[0]), len(parts))

    def copied(self) -> Stacked:
        """The same in memory of its own."""
        return Stacked([leaf.clone() for leaf in self.leaves], self.rebuild, self.groups)


def leaves_of(element: Any) -> list[Tensor]:
    """The tensors of a nested container, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped_tensors(note, element)
    return found


def rebuilder(element: Any) -> Callable[[Sequence[Tensor]], Any]:
    """What puts other tensors in the places of those of ``element``."""

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        rest = iter(tensors)
        return mapped_tensors(lambda _: next(rest), element)

    return rebuild


def shapes(part: Part) -> tuple[Any, Shapes]:
    """What two groups must have in common to be stacked."""
    return _structure(part), tuple((tuple(t.shape), t.dtype) for t in leaves_of(part))


def _structure(element: Any) -> Any:
    if isinstance(element, Mapping):
        return type(element).__name__, tuple((key, _structure(value)) for key, value in element.items())
    if isinstance(element, (list, tuple)):
        return type(element).__name__, tuple(_structure(value) for value in element)
    return None if element is None else "tensor"
