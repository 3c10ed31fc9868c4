"""Which type an operation runs in, and whose tensor its output is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """The type of a matrix product with ``x``: autocast's, where that is on."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def correction_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of a low-rank correction: its vectors are too small for float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def without_autocast(function: Callable[..., Any], *args: Any) -> Any:
    """``function``, whose operands are of the right type already."""
    device = next(a for a in args if isinstance(a, Tensor)).device.type
    if not torch.is_autocast_enabled(device):
        return function(*args)
    with torch.autocast(device, enabled=False):
        return function(*args)


def reshaped(y: Tensor, shape: Sequence[int]) -> Tensor:
    """``y`` in another shape as a tensor of its own, which an activation may then write to.

    Autograd forbids that of a view made inside a custom function. For outputs that the operation that made
    them does not keep for its backward pass.
    """
    found: Tensor = torch.ops.aten._unsafe_view.default(y.contiguous(), list(shape))
    return found
