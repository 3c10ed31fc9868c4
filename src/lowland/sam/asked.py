"""What the host asks of tensors. It is told at once; while a step is recorded the question is noted, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Note = Callable[[Tensor], list[bool]]
"""Takes note of a question, conditions of shape ``(n,)``, and answers it."""

_note: ContextVar[Note | None] = ContextVar("note", default=None)


def holds(condition: Tensor | bool) -> bool:
    """Whether a condition of one element does."""
    if isinstance(condition, bool):
        return condition
    note = _note.get()
    return bool(condition) if note is None else note(condition.reshape(1))[0]


def which_hold(conditions: Tensor) -> list[bool]:
    """Which of some conditions do, shape ``(n,)``."""
    note = _note.get()
    found: list[bool] = conditions.tolist() if note is None else note(conditions)
    return found


@contextmanager
def noted(note: Note) -> Iterator[None]:
    """A block whose questions are noted."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)
