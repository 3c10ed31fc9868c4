"""Out of ``vmap`` for the length of one operation, and back.

The public way, an ``autograd.Function`` with a ``vmap`` method, comes to the same and takes 0.4 ms a call:
as long as a small layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call

from lowland.sam.unbatchable import Unbatchable

CUSTOM_FUNCTION: Any = custom_function_call
"""What runs an ``autograd.Function`` inside ``vmap``."""

_functorch: Any = torch._C._functorch
_NEEDED = (
    *("maybe_current_level", "pop_dynamic_layer_stack", "push_dynamic_layer_stack"),
    *("_add_batch_dim", "_remove_batch_dim", "get_unwrapped"),
    *("_vmap_increment_nesting", "_vmap_decrement_nesting", "maybe_get_bdim", "maybe_get_level"),
)
for _name in _NEEDED:
    if not hasattr(_functorch, _name):
        raise ImportError(f"torch._C._functorch.{_name}")


class Level:
    """The ``vmap`` that runs when this is made.

    Args:
        groups: Its number of groups.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._level = _functorch.maybe_current_level()

    def at_groups(self, function: Callable[..., Any], tensors: Sequence[Tensor | None]) -> Any:
        """``function`` of ``tensors`` with the axis of all groups first, as in what it returns."""
        if _functorch.maybe_current_level() != self._level:
            raise Unbatchable("a transform of torch.func inside the loss")
        lifted = [None if t is None else _remove(t, self._level, self._groups) for t in tensors]
        found = self._outside(function, lifted)
        if isinstance(found, Tensor):
            return _functorch._add_batch_dim(found, 0, self._level)
        return tuple(_functorch._add_batch_dim(t, 0, self._level) for t in found)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same ``vmap`` once more, after it has ended."""
        level = _functorch._vmap_increment_nesting(self._groups, "different")
        try:
            if level != self._level:
                raise Unbatchable("activation checkpointing whose backward pass is inside a transform")
            yield
        finally:
            _functorch._vmap_decrement_nesting()

    def _outside(self, function: Callable[..., Any], lifted: list[Tensor | None]) -> Any:
        saved: list[Any] = []
        try:
            saved.extend(starmap(_functorch.pop_dynamic_layer_stack, ((),)))  # no interrupt in between
            found = function(*lifted)
            _functorch.push_dynamic_layer_stack(saved[0])
        except BaseException:
            if saved and _functorch.maybe_current_level() != self._level:  # it may have come after the push
                _functorch.push_dynamic_layer_stack(saved[0])
            raise
        return found


def _remove(tensor: Tensor, level: int, groups: int) -> Tensor:
    found: Tensor = _functorch._remove_batch_dim(tensor, level, groups, 0)
    return found


def unwrapped(tensor: Tensor) -> Tensor:
    """What a tensor inside ``vmap`` stands for: those of all groups."""
    found: Tensor = _functorch.get_unwrapped(tensor)
    return found


def leaf(tensor: Tensor) -> Tensor:
    """A tensor inside ``vmap`` without its history, which needs a gradient if it did."""
    whole = unwrapped(tensor)
    if not whole.requires_grad:
        return tensor
    with outside():
        whole = whole.detach().requires_grad_()
    place, level = _functorch.maybe_get_bdim(tensor), _functorch.maybe_get_level(tensor)
    found: Tensor = _functorch._add_batch_dim(whole, place, level)
    return found


@contextmanager
def outside() -> Iterator[None]:
    """Out of ``vmap``, inside the block."""
    saved = _functorch.pop_dynamic_layer_stack()
    try:
        yield
    finally:
        _functorch.push_dynamic_layer_stack(saved)
