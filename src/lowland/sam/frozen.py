"""Parameters that a pass writes to although nobody trains them, noticed before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lowland.sam.modes import OwnMode
from lowland.sam.place import place_of
from lowland.sam.private import is_transformed


class Writes(OwnMode):
    """Tells of every write to some tensors, by any name, just before it happens.

    Args:
        tensors: The tensors.
        tell: Called with a tensor that is about to be written to, or to be given other memory.
    """

    def __init__(self, tensors: Iterable[Tensor], tell: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._by_memory: dict[int, Tensor] = {}
        self._tell = tell
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Takes more of them."""
        self._by_memory.update((place_of(t), t) for t in tensors if _has_memory(t))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors(_targets(getattr(func, "__name__", ""), args, kwargs)):
            known = self._by_memory.get(place_of(tensor))
            if known is not None:
                self._tell(known)
        return func(*args, **kwargs)


_WRITING = {
    *("__set__", "__setitem__", "numpy"),
    *(f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")),
}
"""Functions that write, or hand out memory to be written to, without a name that says so."""


def _targets(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function writes to, or hands out to be written to."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    if in_place or name in _WRITING or kwargs.get("inplace"):
        return args[0] if args else kwargs.get("input")
    return None


def _has_memory(tensor: Tensor) -> bool:
    inside = is_transformed(tensor)  # a transform made it
    return not inside and tensor.layout == torch.strided and tensor.numel() > 0 and not tensor.is_meta


def _tensors(element: Any) -> Iterator[Tensor]:
    if isinstance(element, Tensor):
        if _has_memory(element):
            yield element
    elif isinstance(element, (list, tuple)):
        for value in element:
            yield from _tensors(value)
