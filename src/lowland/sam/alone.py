"""One call at a time on the same things."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

_lock = threading.Lock()
_at_work: dict[int, weakref.ref[Alone]] = {}


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
        self._things, self._refusal, self._nested = list(map(id, things)), refusal, nested
        self._thread = threading.get_ident()
        self._ended = False
        self._outside: dict[int, weakref.ref[Alone]] = {}

    def __enter__(self) -> Alone:
        with _lock:
            for thing in self._things:
                ref = _at_work.get(thing)
                other = None if ref is None else ref()
                if ref is not None and other is not None and not other._ended:
                    if not (self._nested and other._nested and self._thread == other._thread):
                        raise RuntimeError(self._refusal)
                    self._outside[thing] = ref
            _at_work.update(dict.fromkeys(self._things, weakref.ref(self)))
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        with _lock:
            for thing in self._things:
                _at_work.pop(thing, None)
            _at_work.update(self._outside)

    def end(self) -> None:
        """Others may work on the things; once more is as good."""
        self._ended = True
