"""Where a tensor is in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def place_of(tensor: Tensor) -> int:
    """Where the memory of a tensor begins, which its views share.

    Of one that has no memory of its own (a sparse one, or one of a subclass that wraps others, as quantized
    weights are) it is its identity.
    """
    if tensor.layout != torch.strided:
        return id(tensor)
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return id(tensor)
