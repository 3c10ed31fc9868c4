"""Nested containers of tensors: what they hold, rebuilt around other tensors, copied."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def is_container(element: Any) -> bool:
    """Whether ``element`` is a mapping, list, tuple or dataclass."""
    if isinstance(element, Tensor):
        return False
    return isinstance(element, (tuple, list, dict, Mapping)) or _is_dataclass(element)


def items(container: Any) -> list[tuple[Any, Any]]:
    """What a container holds, with keys, positions or names of fields."""
    if isinstance(container, (tuple, list)):
        return list(enumerate(container))
    if isinstance(container, Mapping):
        return list(container.items())
    return [(f.name, getattr(container, f.name)) for f in dataclasses.fields(container)]


def like(container: Any, values: list[Any]) -> Any:
    """A container of the same kind with other ``values``."""
    if type(container) is tuple:
        return tuple(values)
    if hasattr(container, "_fields"):  # a named tuple takes its fields one by one
        return type(container)(*values)
    if type(container) is dict:
        return dict(zip(container, values, strict=True))
    if isinstance(container, (list, tuple)):
        return type(container)(values)
    if isinstance(container, MutableMapping):
        return _filled(copy.copy(container), zip(list(container), values, strict=True))
    if isinstance(container, Mapping):
        return dict(zip(container, values, strict=True))
    found = copy.copy(container)
    for field, value in zip(dataclasses.fields(container), values, strict=True):
        object.__setattr__(found, field.name, value)  # a frozen one too: it is ours
    return found


def mapped(function: Callable[[Tensor], Any], element: Any) -> Any:
    """``element`` with ``function`` of every tensor of its nested containers, which are new ones."""
    if isinstance(element, Tensor):
        return function(element)
    if is_container(element):
        return like(element, [mapped(function, value) for _, value in items(element)])
    return element


def tensors_of(element: Any) -> list[Tensor]:
    """The tensors of nested containers, in order."""
    found: list[Tensor] = []
    mapped(lambda t: found.append(t) or t, element)  # type: ignore[func-returns-value]
    return found


def rebuilt(element: Any, tensors: Iterable[Tensor]) -> Any:
    """``element`` with other tensors in the places of its own, in order."""
    rest = iter(tensors)
    return mapped(lambda _: next(rest), element)


def holds_same(element: Any, before: Any) -> bool:
    """Whether a container holds what it held when ``before`` was made of it."""
    if not is_container(element):
        return element is before
    now, then = items(element), items(before)
    return len(now) == len(then) and all(
        k == key and holds_same(v, value) for (k, v), (key, value) in zip(now, then, strict=True)
    )


def copied(element: Any, function: Callable[[Tensor], Tensor] | None = None) -> Any:
    """``element`` whose tensors, arrays and containers are its own: what writes to it writes nowhere else.

    Objects of other kinds are copied with what they hold, by their own ``clone`` if they have one;
    modules, functions and classes are not.

    Args:
        element: Anything that a loss takes.
        function: What makes the copy of a tensor.
    """
    function = function or clone
    if type(element) is tuple and all(type(t) is Tensor and t.layout == torch.strided for t in element):
        memory = {t.data_ptr() for t in element}
        if len(memory) == len(element):  # nothing in common: no need to remember what was copied
            return tuple([function(t) for t in element])
    return _Copier(function).copy(element)


def clone(tensor: Tensor) -> Tensor:
    """A copy of a tensor; of one that requires a gradient, which the loss differentiates, itself."""
    return tensor if tensor.requires_grad else tensor.clone()


def version_of(tensor: Tensor | None) -> int:
    """What changes when a tensor is written to; tensors made in inference mode do not tell."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def name_of(element: object) -> str:
    """What an element is called in errors."""
    return type(element).__name__


_WHOLE = (nn.Module, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)


class _Copier:
    """Copies whose parts have the same memory in common as those of what is copied."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._done: dict[Any, Any] = {}

    def copy(self, element: Any) -> Any:
        if type(element) is tuple:
            return tuple([self.copy(value) for value in element])
        if element is None or isinstance(element, (str, bytes, int, float, complex)):
            return element
        key = _memory(element)
        if key not in self._done:
            self._done[key] = self._copy(element)
        return self._done[key]

    def _copy(self, element: Any) -> Any:
        if isinstance(element, Tensor):
            return self._function(element)
        if isinstance(element, np.ndarray):
            return element.copy()
        if is_container(element):
            return like(element, [self.copy(value) for _, value in items(element)])
        if isinstance(element, set):
            return set(element)
        if isinstance(element, _WHOLE) or not hasattr(element, "__dict__"):
            return element
        if type(element).__module__.partition(".")[0] == "torch":  # an optimizer, a process group
            return element
        return self._of_object(element)

    def _of_object(self, element: Any) -> Any:
        if callable(getattr(element, "clone", None)):
            return element.clone()
        found = copy.copy(element)
        vars(found).update({key: self.copy(value) for key, value in vars(element).items()})
        return found


def _memory(element: Any) -> Any:
    """What two names of the same memory have in common."""
    if type(element) is Tensor and element.layout == torch.strided:
        return element.data_ptr(), element.shape, element.stride(), element.dtype
    return id(element)


def _is_dataclass(element: Any) -> bool:
    return dataclasses.is_dataclass(element) and not isinstance(element, type)


def _filled(mapping: Any, pairs: Any) -> Any:
    for key, value in pairs:
        mapping[key] = value
    return mapping
