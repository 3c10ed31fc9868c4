"""The l2 norm of a list of tensors taken together."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.asked import holds


def l2_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    r"""Norm :math:`\sqrt{\sum_i \|t_i\|_2^2}` of all ``tensors`` together, in float32 or better.

    Args:
        tensors: At least one tensor, of any shapes, dense or sparse; the result is on the first one's device.

    Returns:
        The norm, a tensor without dimensions.

    Example:
        >>> import torch
        >>> from lowland.sam import l2_norm
        >>> l2_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
    """
    tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    total = _norm_of_norms(tensors)
    limits = torch.finfo(total.dtype)
    if holds((total > limits.tiny**0.5 / limits.eps) & (total < limits.max)):
        return total
    # Squares may have left the range of the type: once more, in units of the largest entry.
    peak = torch.stack([_to(t.abs().max(), total) for t in tensors if t.numel()] or [total]).max()
    if not holds((peak != 0) & peak.isfinite()):
        return total
    return peak * _norm_of_norms([t.to(_accumulation_dtype(t)) / peak.to(t.device) for t in tensors])


def _norm_of_norms(tensors: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(t, dtype=_accumulation_dtype(t)) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([_to(n, norms[0]) for n in norms]))
    return total


def _to(scalar: Tensor, like: Tensor) -> Tensor:
    return scalar.to(like.device, torch.promote_types(scalar.dtype, like.dtype))


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
