"""What a trainer's loss notes on the trainer: counters and lists of numbers for its logs."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

_LONG = 64
"""Entries above which a list is not copied, only its length is taken, and a dictionary is no note."""

_Place = dict[str, Any] | list[Any] | deque[Any]


class Noted:
    """The numbers among an object's attributes, and in dictionaries and lists there, as they are now.

    Args:
        owner: The object.
    """

    def __init__(self, owner: object) -> None:
        self._places: dict[int, tuple[_Place, int, _Place]] = {}
        self._scalars: list[tuple[Tensor, Tensor]] = []
        self._own = vars(owner)
        self._take(self._own, _notes(self._own))

    @torch.no_grad()
    def put_back(self) -> None:
        """Makes the numbers what they were."""
        for place, length, entries in self._places.values():
            if isinstance(place, deque):
                place.clear()
                place.extend(entries)
            elif isinstance(place, list):
                place[length:] = []
                place[: len(entries)] = entries
            elif isinstance(entries, dict):
                place.update(entries)
                for name in self._now(place).keys() - entries.keys():
                    del place[name]
        for scalar, value in self._scalars:
            scalar.copy_(value)

    def changed(self) -> bool:
        """Whether something was noted since."""
        return any(not self._is_as_it_was(*known) for known in self._places.values())

    def _now(self, place: dict[str, Any]) -> dict[str, Any]:
        return _notes(place) if place is self._own else place

    def _is_as_it_was(self, place: _Place, length: int, entries: _Place) -> bool:
        if isinstance(place, dict) and isinstance(entries, dict):
            now = self._now(place)
            return now.keys() == entries.keys() and all(_same(now[name], entries[name]) for name in now)
        return len(place) == length and all(map(_same, place, entries))

    def _take(self, place: _Place, entries: _Place) -> None:
        self._places[id(place)] = place, len(place), entries
        for value in entries.values() if isinstance(entries, dict) else entries:
            if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
                self._scalars.append((value, value.clone()))
            elif isinstance(value, list | deque) and id(value) not in self._places:
                whole = len(value) <= _LONG or isinstance(value, deque)
                self._take(value, list(value) if whole else [])
            elif isinstance(value, dict) and id(value) not in self._places and len(value) <= _LONG:
                self._take(value, dict(value))


def _notes(attributes: dict[str, Any]) -> dict[str, Any]:
    kinds = (int, float, str, Tensor, dict, list, tuple, deque, type(None))
    return {name: value for name, value in attributes.items() if isinstance(value, kinds)}


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, int | float) and isinstance(b, int | float) and a == b)
