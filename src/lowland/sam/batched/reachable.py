"""What Python state a loss can reach, and put back as it was.

A pass over all groups at once hands the loss tensors that mean nothing outside it. A loss that keeps one, as
a running mean, in a list, or as an attribute, is refused and runs group by group; what it kept is put back
first.
"""

from __future__ import annotations

import functools
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from lowland.sam.functional import functions_of
from lowland.sam.kept import CONTAINERS, kept_containers

MOST = 20_000
"""Things that are looked at before the search ends."""

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Reachable:
    """The mutable things that a loss and the modules that it runs can reach.

    These are the variables that functions close over, the globals that they name (of code outside installed
    libraries), and attributes and containers that are found there.

    Args:
        loss: The loss.
        modules: Modules that it runs.
        beside: Other things of the user's that decide on a pass.

    Attributes:
        containers: Dicts, lists and sets, those of attributes included.
        cells: Variables that functions close over.
        arrays: Arrays of NumPy.
        is_whole: Whether the search came to an end.
    """

    def __init__(self, loss: Any, modules: Iterable[nn.Module], beside: Iterable[Any] = ()) -> None:
        self.containers: list[Any] = []
        self.cells: list[types.CellType] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.is_whole = True
        self._spaces: dict[tuple[int, str], tuple[Mapping[str, Any], str]] = {}
        self._search([*functions_of(loss), *modules, *beside])

    def places(self) -> list[tuple[Mapping[str, Any], str]]:
        """Global variables and attributes of modules and classes: where they are, and their names."""
        return list(self._spaces.values())

    def taken(self) -> Callable[[], None]:
        """Takes everything as it is now.

        Returns:
            What puts it back.
        """
        put_containers_back = kept_containers(self.containers)
        cells = [(cell, cell.cell_contents) for cell in self.cells if _is_full(cell)]
        places = [(space, name) for space, name in self._spaces.values() if isinstance(space, dict)]
        named = [(space, name, space[name]) for space, name in places if name in space]

        def put_back() -> None:
            put_containers_back()
            for cell, value in cells:
                cell.cell_contents = value
            for space, name, value in named:
                space[name] = value

        return put_back

    def _search(self, roots: list[Any]) -> None:
        seen: set[int] = set()
        waiting = deque(roots)
        alive = []  # so that no identity is used again
        while waiting:
            if len(seen) >= MOST:
                self.is_whole = False
                return
            thing = waiting.popleft()
            if id(thing) in seen or isinstance(thing, _SINGLE):
                continue
            seen.add(id(thing))
            alive.append(thing)
            waiting.extend(self._inside(thing))

    def _inside(self, thing: Any) -> Iterator[Any]:
        """What ``thing`` leads to; what of it can change is noted."""
        if isinstance(thing, CONTAINERS):
            self.containers.append(thing)
            yield from list(thing.values() if isinstance(thing, dict) else thing)[:1000]
        elif isinstance(thing, (tuple, frozenset)):
            yield from thing
        elif isinstance(thing, types.FunctionType):
            yield from self._of_function(thing)
        elif isinstance(thing, types.MethodType):
            yield from (thing.__func__, thing.__self__)
        elif isinstance(thing, functools.partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif isinstance(thing, nn.Module):
            yield from self._of_module(thing)
        elif isinstance(thing, np.ndarray):
            self.arrays.append(thing)
        elif not _is_of_library(type(thing)):
            if hasattr(thing, "__dict__"):
                yield vars(thing)
            yield from _methods(type(thing))

    def _of_module(self, module: nn.Module) -> Iterator[Any]:
        """Its attributes; parameters and buffers are put back elsewhere."""
        self.containers.append(vars(module))
        yield from (value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)
        yield from module._modules.values()
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            yield from hooks.values()
        yield from _methods(type(module))

    def _of_function(self, function: types.FunctionType) -> Iterator[Any]:
        for cell in function.__closure__ or ():
            self.cells.append(cell)
            if _is_full(cell):
                yield cell.cell_contents
        yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
        if function.__code__.co_filename.startswith(_LIBRARIES):
            return
        names = set(_names(function.__code__))
        for name in sorted(names & function.__globals__.keys()):
            value = self._place(function.__globals__, name)
            yield value
            if isinstance(value, (types.ModuleType, type)) and not _is_of_library(value):
                yield from [self._place(vars(value), name) for name in sorted(names & vars(value).keys())]

    def _place(self, space: Mapping[str, Any], name: str) -> Any:
        self._spaces[id(space), name] = space, name
        return space[name]


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_SINGLE = (Tensor, str, bytes, int, float, complex, type(None), type, types.ModuleType)


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - the only way to ask
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code looks up, that of functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _methods(cls: type) -> Iterator[Any]:
    """The functions of a class that its users wrote."""
    for base in cls.__mro__:
        if not _is_of_library(base):
            yield from (value for value in vars(base).values() if isinstance(value, types.FunctionType))


def _is_of_library(thing: Any) -> bool:
    """Whether a class, or a module of Python, is none of the user's."""
    if isinstance(thing, types.ModuleType):
        return (getattr(thing, "__file__", None) or _LIBRARIES[0]).startswith(_LIBRARIES)
    package = f"{thing.__module__}."
    return package.startswith(("builtins.", "torch.", "numpy.", "lowland.sam.", "collections.", "typing."))
