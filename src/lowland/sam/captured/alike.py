"""Whether something that a loss reaches is still what a recorded step has made of it."""

from __future__ import annotations

import functools
import types
from contextvars import ContextVar
from typing import Any

from lowland.sam.functional import Functional

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""What is the same if it is equal."""


def alike(now: Any, then: Any) -> bool:
    """Whether two things stand for the same: they are one, equal numbers or words, or a function made anew.

    Of functions with the same code, what they close over and their defaults must be alike.
    """
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(now, PLAIN):
        equal = now == then and (now != 0 or repr(now) == repr(then))  # 0 is not -0
        return bool(equal or (now != now and then != then))
    if type(now) in (tuple, frozenset):
        return len(now) == len(then) and all(map(alike, now, then))
    if isinstance(now, types.FunctionType):
        return _functions(now, then)
    if isinstance(now, types.MethodType):
        return now.__self__ is then.__self__ and alike(now.__func__, then.__func__)
    if isinstance(now, functools.partial):
        return all(
            alike(getattr(now, name), getattr(then, name)) for name in ("func", "args")
        ) and alike_entries(now.keywords, then.keywords)
    if isinstance(now, Functional):
        return alike(now.outputs, then.outputs) and alike(now.criterion, then.criterion)
    return False


def _functions(now: types.FunctionType, then: types.FunctionType) -> bool:
    pair = now, then
    if pair in _open.get():  # one that closes over itself
        return True
    token = _open.set((*_open.get(), pair))
    try:
        return _parts(now, then)
    finally:
        _open.reset(token)


_open: ContextVar[tuple[Any, ...]] = ContextVar("open", default=())
"""The functions that are being compared."""


def _parts(now: types.FunctionType, then: types.FunctionType) -> bool:
    if now.__code__ is not then.__code__ or now.__globals__ is not then.__globals__:
        return False
    cells = (now.__closure__ or ()), (then.__closure__ or ())
    return (
        len(cells[0]) == len(cells[1])
        and all(map(_cells, *cells))
        and alike(now.__defaults__, then.__defaults__)
        and alike_entries(now.__kwdefaults__ or {}, then.__kwdefaults__ or {})
        and alike_entries(now.__dict__, then.__dict__)
    )


def _cells(now: types.CellType, then: types.CellType) -> bool:
    try:
        return now is then or alike(now.cell_contents, then.cell_contents)
    except ValueError:  # one of them is empty
        return False


def alike_entries(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Whether two dicts hold the same."""
    return now.keys() == then.keys() and all(alike(now[key], then[key]) for key in now)
