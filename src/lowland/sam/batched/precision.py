"""Which type an operation runs in, and whose tensor its output is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def wide(device: torch.device) -> torch.dtype:
    """Double precision, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def product_dtype(x: Tensor) -> torch.dtype:
    """The type of a matrix product with ``x``: autocast's, where that is on."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def correction_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of a low-rank correction: its vectors are too small for float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def autocast_off(tensor: Tensor) -> AbstractContextManager[Any]:
    """No autocast inside the block, on the device of ``tensor``."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


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
