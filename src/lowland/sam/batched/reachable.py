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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
    """

    def __init__(self, loss: Any, modules: Iterable[nn.Module]) -> None:
        self._containers: list[Any] = []
        self._cells: list[types.CellType] = []
        self._globals: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
        self._search([*functions_of(loss), *modules])

    def taken(self) -> Callable[[], None]:
        """Takes everything as it is now.

        Returns:
            What puts it back.
        """
        put_containers_back = kept_containers(self._containers)
        cells = [(cell, cell.cell_contents) for cell in self._cells if _is_full(cell)]
        named = [(space, name, space[name]) for space, name in self._globals.values() if name in space]

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
        while waiting and len(seen) < MOST:
            thing = waiting.popleft()
            if id(thing) in seen or isinstance(thing, _SINGLE):
                continue
            seen.add(id(thing))
            alive.append(thing)
            waiting.extend(self._inside(thing))

    def _inside(self, thing: Any) -> Iterator[Any]:
        """What ``thing`` leads to; what of it can change is noted."""
        if isinstance(thing, CONTAINERS):
            self._containers.append(thing)
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
        elif hasattr(thing, "__dict__") and not _is_of_library(type(thing)):
            yield vars(thing)
            yield from _methods(type(thing))

    def _of_module(self, module: nn.Module) -> Iterator[Any]:
        """Its attributes; parameters and buffers are put back elsewhere."""
        self._containers.append(vars(module))
        yield from (value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)
        yield from module._modules.values()
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            yield from hooks.values()
        yield from _methods(type(module))

    def _of_function(self, function: types.FunctionType) -> Iterator[Any]:
        for cell in function.__closure__ or ():
            self._cells.append(cell)
            if _is_full(cell):
                yield cell.cell_contents
        yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
        if function.__code__.co_filename.startswith(_LIBRARIES):
            return
        space = function.__globals__
        for name in _names(function.__code__):
            if name in space:
                self._globals[id(space), name] = space, name
                yield space[name]


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


def _is_of_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in {
        "builtins",
        "torch",
        "numpy",
        "lowland",
        "collections",
        "typing",
    }
