"""What a loss names, which it will use."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from lowland.sam.functional import functions_of


def modules_named_by(loss: Any) -> Iterator[nn.Module]:
    """Modules that a loss closes over, names as globals, is given by default, or has as attributes."""
    return (value for value in named_by(loss) if isinstance(value, nn.Module))


def named_by(loss: Any) -> Iterator[Any]:
    """The loss, and what it closes over, names as globals, is given by default, or has as attributes."""
    for function in functions_of(loss):
        yield from _named_by(function)


def _named_by(loss: Any) -> Iterator[Any]:
    while isinstance(loss, functools.partial):
        yield from loss.args
        loss = loss.func
    yield loss
    owner = getattr(loss, "__self__", loss)
    if not isinstance(owner, (types.FunctionType, nn.Module)):
        yield owner
        yield from getattr(owner, "__dict__", {}).values()
    function = getattr(loss, "__func__", loss)
    if isinstance(function, types.FunctionType):
        yield from function.__defaults__ or ()
        space = function.__globals__
        yield from (space[name] for name in function.__code__.co_names if name in space)
        for cell in function.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # a variable that is not set yet
                continue
