"""The l2 norm of a list of tensors taken together."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def l2_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    r"""Norm :math:`\sqrt{\sum_i \|t_i\|_2^2}` of all ``tensors`` together, in float32 or better.

    Args:
        tensors: At least one tensor, of any shapes; the result is on the first one's device.

    Example:
        >>> l2_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
    """
    norms = [torch.linalg.vector_norm(t, dtype=_accumulation_dtype(t)) for t in tensors]
    device = norms[0].device
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms]))
    return total


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
