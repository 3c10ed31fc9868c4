"""One call at a time on the same things."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

_lock = threading.Lock()
_at_work: weakref.WeakValueDictionary[int, Alone] = weakref.WeakValueDictionary()


class Alone(AbstractContextManager[Any]):
    """A block in which no other works on the same things.

    An interrupt between the block and its end holds nobody up for longer than its traceback is looked at.

    Args:
        things: The things.
        refusal: What another block is told.
        nested: Whether blocks of the same thread may lie in one another.

    Raises:
        RuntimeError: On entry, if another block is at work on some of them.
    """

    def __init__(self, things: Sequence[object], refusal: str, *, nested: bool) -> None:
        self._things, self._refusal, self._nested = things, refusal, nested
        self._thread = threading.get_ident()
        self._ended = False

    def __enter__(self) -> Alone:
        with _lock:
            for thing in self._things:
                other = _at_work.get(id(thing))
                if other is not None and other.keeps_out(self):
                    raise RuntimeError(self._refusal)
            _at_work.update((id(thing), self) for thing in self._things)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Others may work on the things; once more is as good."""
        self._ended = True

    def keeps_out(self, other: Alone) -> bool:
        """Whether ``other`` must wait."""
        return not self._ended and not (other._nested and self._thread == other._thread)
