"""Scaled-dot-product attention, with the groups folded into the batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lowland.sam.batched.precision import result_type
from lowland.sam.batched.tape import Tape, rule


@rule(F.scaled_dot_product_attention)
def attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """Attention; a mask that all groups share is not copied for each."""
    result_type(F.scaled_dot_product_attention, (query, 4), (key, 4), (value, 4))
    function = partial(_at_groups, {"dropout_p": dropout_p, "is_causal": is_causal, **options})
    return tape.at_groups(function, query, key, value, attn_mask)


def _at_groups(options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = _same_lead(q, k, v)
    folded = None if mask is None else _mask(mask, q)
    if q.dim() == 3:
        return F.scaled_dot_product_attention(q, k, v, folded, **options)
    q_all, k_all, v_all = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    y = F.scaled_dot_product_attention(q_all, k_all, v_all, folded, **options)
    return y.reshape(*q.shape[:2], *y.shape[1:])


def _same_lead(*tensors: Tensor) -> list[Tensor]:
    """Queries, keys and values of the same number of dimensions and the same batch."""
    dims = max(t.dim() for t in tensors)
    found = [t.view(len(t), *[1] * (dims - t.dim()), *t.shape[1:]) for t in tensors]
    if dims == 3:
        return found
    batch = max(t.shape[1] for t in found)
    return [t.expand(-1, batch, *[-1] * (dims - 2)) for t in found]


def _mask(mask: Tensor, q: Tensor) -> Tensor:
    """A mask of ``(groups, *broadcastable, L, S)`` for the folded batch."""
    if mask.stride(0) == 0 and (mask.dim() == 3 or mask.dim() < q.dim() or mask.shape[1] == 1):
        return mask[0, 0] if mask.dim() == q.dim() and q.dim() > 3 else mask[0]
    shape = (len(q), *[1] * (q.dim() - mask.dim()), *mask.shape[1:])
    mask = mask.view(shape)
    if q.dim() == 3:
        return mask
    rest = mask.shape[2:]
    return mask.expand(*q.shape[:2], *rest).reshape(-1, *rest)
