"""What Python state a loss can reach, and put back as it was.

A pass over all groups at once hands the loss tensors that mean nothing outside it. A loss that keeps one, as
a running mean, in a list, or as an attribute, is refused and runs group by group; what it kept is put back
first.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
        self._spaces: dict[tuple[int, str], tuple[_Space, str]] = {}
        self._classes: set[type] = set()
        self._looked_up: set[tuple[int, frozenset[str]]] = set()
        self._search([*functions_of(loss), *modules, *beside])

    def places(self) -> list[tuple[_Space, str]]:
        """Global variables, attributes of modules and classes, and slots: where they are, and their names."""
        return list(self._spaces.values())

    def taken(self) -> Callable[[], None]:
        """Takes everything as it is now.

        Returns:
            What puts it back.
        """
        put_containers_back = kept_containers(self.containers)
        cells = [(cell, cell.cell_contents) for cell in self.cells if _is_full(cell)]
        spaces = self._spaces.values()
        places = [(space, name) for space, name in spaces if isinstance(space, (dict, _Attributes))]
        named = [(space, name, space[name]) for space, name in places if name in space]

        def put_back() -> None:
            put_containers_back()
            for cell, value in cells:
                cell.cell_contents = value
            for space, name, value in named:
                if space.get(name) is not value:
                    space[name] = value

        return put_back

    def arrays_taken(self) -> Callable[[], None]:
        """The same of arrays, which are copied."""
        kept = [(array, array.copy()) for array in self.arrays if array.flags.writeable]

        def put_back() -> None:
            for array, before in kept:
                array[...] = before

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
        elif isinstance(thing, type):
            yield from self._of_class(thing)
        elif isinstance(thing, functools.partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif isinstance(thing, nn.Module):
            yield from self._of_module(thing)
        elif isinstance(thing, torch.optim.Optimizer):
            yield thing.param_groups  # where a loss may look for the learning rate
        elif isinstance(thing, np.ndarray):
            self.arrays.append(thing)
        elif not _is_of_library(type(thing)):
            if hasattr(thing, "__dict__"):
                yield vars(thing)
            yield from self._of_slots(thing)
            yield from self._of_class(type(thing))

    def _of_module(self, module: nn.Module) -> Iterator[Any]:
        """Its attributes; parameters and buffers are put back elsewhere."""
        if not isinstance(module, DistributedDataParallel):  # whose own are of the reduction, not of a pass
            self.containers.append(vars(module))
            yield from (value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)
        yield from module._modules.values()
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            yield from hooks.values()
        yield from self._of_class(type(module))

    def _of_slots(self, thing: Any) -> Iterator[Any]:
        names = [name for base in type(thing).__mro__ for name in _slots(base)]
        space = _Attributes(thing)
        yield from (self._place(space, name) for name in names if name in space)

    def _of_class(self, cls: type, names: Collection[str] | None = None) -> Iterator[Any]:
        """What its users wrote in a class and its bases: all of it, or what has these names."""
        for base in cls.__mro__:
            if _is_of_library(base) or (names is None and base in self._classes):
                continue
            if names is None:
                self._classes.add(base)
            space, installed = _Attributes(base), _is_installed(base)
            for name, value in list(vars(base).items()):
                function = _function_of(value)
                if names is not None and name not in names:
                    continue
                if function is not None:
                    yield function
                elif not installed and not name.startswith("__"):
                    yield self._place(space, name)

    def _of_function(self, function: types.FunctionType) -> Iterator[Any]:
        names, installed = _names_in(function), function.__code__.co_filename.startswith(_LIBRARIES)
        for cell in function.__closure__ or ():
            self.cells.append(cell)
            if _is_full(cell):
                yield cell.cell_contents
                if not installed:
                    yield from self._of_named(cell.cell_contents, names)
        yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
        if installed:
            return
        for name in sorted(names & function.__globals__.keys()):
            value = self._place(function.__globals__, name)
            yield value
            yield from self._of_named(value, names)

    def _of_named(self, value: Any, names: Collection[str]) -> Iterator[Any]:
        """What code that has these names may look up in a module of Python or a class."""
        key = id(value), frozenset(names)
        if not isinstance(value, types.ModuleType) or _is_of_library(value) or key in self._looked_up:
            return
        self._looked_up.add(key)
        for name in sorted({*names} & vars(value).keys()):
            found = self._place(vars(value), name)
            yield found
            yield from self._of_named(found, names)

    def _place(self, space: _Space, name: str) -> Any:
        self._spaces[id(space), name] = space, name
        return space[name]


class _Attributes:
    """What an object has in slots, or a class itself has, by name.

    Args:
        owner: The object or the class.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute; ``default`` if there is none."""
        if isinstance(self.owner, type):
            return vars(self.owner).get(name, default)
        return getattr(self.owner, name, default)

    def __contains__(self, name: str) -> bool:
        return self.get(name, self) is not self

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        (type if isinstance(self.owner, type) else object).__setattr__(self.owner, name, value)


_Space = Mapping[str, Any] | _Attributes

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_SINGLE = (Tensor, str, bytes, int, float, complex, type(None), types.ModuleType)


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - the only way to ask
    except ValueError:
        return False
    return True


def _names_in(function: types.FunctionType) -> set[str]:
    return set(_names(function.__code__))


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code looks up, that of functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _slots(cls: type) -> Collection[str]:
    if "__slots__" not in vars(cls):
        return ()
    return [name for name, held in vars(cls).items() if isinstance(held, types.MemberDescriptorType)]


def _function_of(attribute: Any) -> types.FunctionType | None:
    """The function of a class that an attribute of it is, or calls."""
    if isinstance(attribute, (staticmethod, classmethod)):
        attribute = attribute.__func__
    elif isinstance(attribute, property):
        attribute = attribute.fget
    elif isinstance(attribute, functools.cached_property):
        attribute = attribute.func
    return attribute if isinstance(attribute, types.FunctionType) else None


def _is_installed(cls: type) -> bool:
    """Whether a class comes from an installed library."""
    return (getattr(sys.modules.get(cls.__module__), "__file__", None) or "").startswith(_LIBRARIES)


def _is_of_library(thing: Any) -> bool:
    """Whether a class, or a module of Python, is none of the user's."""
    if isinstance(thing, types.ModuleType):
        return (getattr(thing, "__file__", None) or _LIBRARIES[0]).startswith(_LIBRARIES)
    package = f"{thing.__module__}."
    return package.startswith(("builtins.", "torch.", "numpy.", "lowland.sam.", "collections.", "typing."))
