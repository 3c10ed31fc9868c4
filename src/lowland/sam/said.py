"""What is said to the user: where from, and what counts as the same loss."""

from __future__ import annotations

import functools
import linecache
import sys
import warnings
from collections.abc import Hashable
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lowland.sam.functional import functions_of

_INSIDE = ("lowland.", "torch.", "contextlib.", "copy.")


def warn_caller(text: str) -> None:
    """Warns at the user's own line that called the library."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, stacklevel=depth)


def line_outside() -> str:
    """The line of the loss that is being run, with its place; nothing where it cannot be read."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_inside(frame):
        frame = frame.f_back
    return "" if frame is None else _line(frame, frame.f_lineno)


def line_that_raised(error: BaseException) -> str:
    """The same of the line in which an error was raised, as far as the error has come."""
    found, traceback = "", error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if not _is_inside(frame):
            found = _line(frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def _is_inside(frame: FrameType) -> bool:
    """Whether a frame is the library's, torch's, or one of Python's own that only passes on a call."""
    return f"{frame.f_globals.get('__name__', '')}.".startswith(_INSIDE)


def _line(frame: FrameType, number: int) -> str:
    path = frame.f_code.co_filename
    text = linecache.getline(path, number).strip()
    return f": {text} ({Path(path).name}, line {number})" if text else ""


def warn_once(about: Tensor, key: Hashable, text: str) -> None:
    """The same, the first time for this key and this tensor, with which it is forgotten."""
    said: set[Hashable] = _said.setdefault(about, set())
    if key not in said:
        said.add(key)
        warn_caller(text)


_said: Any = WeakIdKeyDictionary()


def loss_key(loss: Any) -> Hashable:
    """What is the same for a loss that is defined anew in each step."""
    if len(functions := functions_of(loss)) > 1:
        return tuple(map(loss_key, functions))
    while isinstance(loss, functools.partial):
        loss = loss.func
    function = getattr(loss, "__func__", loss)
    code = getattr(function, "__code__", None)
    return id(type(loss)) if code is None else (code.co_filename, code.co_firstlineno, hash(code))
