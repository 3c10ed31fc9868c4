"""What could not be run for all groups at once, in the words of the loss that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import torch

from lowland.sam.unbatchable import Unbatchable


def named(operation: Callable[..., Any]) -> str:
    """An operation as it is written in a loss."""
    name = getattr(operation, "__name__", str(operation))
    if name in {"__get__", "__set__"}:
        return f"Tensor.{operation.__self__.__name__}"  # type: ignore[attr-defined]
    return _WRITTEN.get(name, name)


def cause_of(error: Exception, operation: Callable[..., Any] | None) -> Unbatchable:
    """The refusal of a loss in which torch raised ``error``.

    Args:
        error: The error.
        operation: The operation of torch that raised it; ``None`` where none was running.
    """
    return Unbatchable(_what(error, None if operation is None else named(operation)))


def _what(error: Exception, name: str | None) -> str:
    """The cause of an error, by what was being called and by what torch says of it."""
    for frame in _frames(error.__traceback__):
        function = frame.f_locals.get("cls") if frame.f_code is _APPLY else None
        if function is not None and not function.__module__.startswith("lowland."):
            return _OF_TORCH.get(function.__name__, f"{CUSTOM}, {function.__name__}")
    said = str(error).split("\n")[0].strip()
    for words, cause in _SAID.items():
        if words in said and (name is not None or "{}" not in cause):
            return cause.format(name)
    return f"{name or 'what torch.func.vmap cannot run'} ({said})"


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


CUSTOM = "a custom autograd.Function"

_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]

_OF_TORCH = {
    "BackwardHookFunction": "backward hooks of a module",
    "CheckpointFunction": "activation checkpointing with use_reentrant=True",
}
"""What functions of torch's own stand for."""

_SAID = {
    "torch.func.{": "a transform of torch.func inside the loss",
    "requires_grad_()": "a gradient inside the loss",
    "retain_grad": "a gradient inside the loss",
    ".item()": "a value that is read from a tensor, by {}",
    "data pointer": "a value that is read from a tensor, by {}",
    "dynamic shape": "a result whose shape depends on the data, by {}",
    "differently shaped": "a result whose shape depends on the data, by {}",
    "accessing `data`": "Tensor.data",
    "storage of Batched": "the memory of a tensor, by {}",
    "broadcast shape": "{}, which writes to a tensor that all groups share",
    "out-of-place": "{}, which writes to a tensor that all groups share",
    "inplace": "{}, which writes to a tensor that all groups share",
    "Batching rule": "{}, which torch.func.vmap cannot run",
    "vmap": "{}, which torch.func.vmap cannot run",
}
"""What is wrong, by torch's words for it; ``{}`` is the operation."""

_WRITTEN = {
    "__array__": "NumPy",
    "__contains__": "in",
    "__deepcopy__": "copy.deepcopy",
    "__float__": "float()",
    "__format__": "an f-string",
    "__getitem__": "indexing",
    "__index__": "an index",
    "__int__": "int()",
    "__setitem__": "indexing",
    "item": ".item()",
    "numpy": ".numpy()",
    "tolist": ".tolist()",
}
