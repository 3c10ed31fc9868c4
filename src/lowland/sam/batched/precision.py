"""Which type an operation runs in, and whose tensor its output is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batched.level import outside


def result_type(function: Callable[..., Tensor], *operands: tuple[Tensor | None, int]) -> torch.dtype:
    """The type of what ``function`` makes of numbers like the operands: see :func:`asked_type`."""
    types = {t.dtype for t, _ in operands if t is not None}
    first = operands[0][0]
    assert first is not None
    alike = len(types) == 1 and not torch.is_autocast_enabled(first.device.type)
    return first.dtype if alike else asked_type(function, *operands)


def asked_type(function: Callable[..., Tensor], *operands: tuple[Tensor | None, int]) -> torch.dtype:
    """The same of operands of any kind: torch is asked, with single numbers, once for each.

    Args:
        function: A function of a module, not made anew for each call.
        operands: Its operands and the number of their dimensions, the first a tensor.

    Raises:
        TypesClash: If torch refuses them.
    """
    first = operands[0][0]
    assert first is not None
    device = first.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    kinds = tuple(None if t is None else (t.dtype, dims) for t, dims in operands)
    return _asked(function, kinds, first.device, autocast)


@functools.lru_cache(maxsize=256)
def _asked(
    function: Callable[..., Tensor],
    kinds: tuple[tuple[torch.dtype, int] | None, ...],
    device: torch.device,
    autocast: torch.dtype | None,  # noqa: ARG001 - part of the key
) -> torch.dtype:
    numbers = [None if k is None else torch.zeros([1] * k[1], dtype=k[0], device=device) for k in kinds]
    try:
        with outside():  # autocast does not reach every operation through vmap
            return function(*numbers).dtype
    except RuntimeError as error:
        raise TypesClash(error) from error


class TypesClash(Exception):
    """Types that torch refuses in any pass.

    Attributes:
        error: What it says.
    """

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(str(error))
        self.error = error


def correction_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of a low-rank correction: its vectors are too small for float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def autocast_off(tensor: Tensor) -> AbstractContextManager[Any]:
    """No autocast inside the block, on the device of ``tensor``."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def autocast_as_it_is(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast as it is now, on the device of ``tensor``, inside a later block."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device))


def without_autocast(function: Callable[..., Any], *args: Any) -> Any:
    """``function``, whose operands are of the right type already."""
    with autocast_off(args[0]):
        return function(*args)


def reshaped(y: Tensor, shape: Sequence[int]) -> Tensor:
    """``y`` in another shape as a tensor of its own, which an activation may then write to.

    Autograd forbids that of a view made inside a custom function. For outputs that the operation that made
    them does not keep for its backward pass.
    """
    found: Tensor = torch.ops.aten._unsafe_view.default(y.contiguous(), list(shape))
    return found
