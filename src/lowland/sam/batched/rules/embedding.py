"""Embeddings, and sums, means and maxima of their rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowland.sam.batched.cost import costs_of_embedding
from lowland.sam.batched.precision import asked_type, result_type
from lowland.sam.batched.tape import Tape, rule
from lowland.sam.batched.weights import Use
from lowland.sam.unbatchable import Unbatchable
from lowland.sam.vectors.factors import OneHot, at_columns, column


@rule(F.embedding)
def embedding(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001 - the function's
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of the weight."""
    if tape.use(weight) is None:
        return NotImplemented
    if max_norm is not None:
        raise Unbatchable("an embedding with max_norm, which changes its weights")
    return _looked_up(tape, input, weight, padding_idx, scale_grad_by_freq, sparse)


@rule(torch.embedding)
def embedding_of_torch(
    tape: Tape,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """The same with its arguments in another order."""
    if tape.use(weight) is None:
        return NotImplemented
    return _looked_up(
        tape, indices, weight, None if padding_idx < 0 else padding_idx, scale_grad_by_freq, sparse
    )


@rule(torch.embedding_bag)
def embedding_bag(
    tape: Tape,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Rows of the weight, reduced bag by bag: sum, mean or maximum."""
    if tape.use(weight) is None:
        return NotImplemented
    dtype = result_type(_plain_bag, (indices, 2), (weight, 2), (per_sample_weights, 2))
    rows = _looked_up(tape, indices, weight, padding_idx, scale_grad_by_freq, sparse)
    if per_sample_weights is not None:
        rows = rows * tape.substituted(per_sample_weights)[:, None]
    place = torch.arange(indices.shape[0], device=indices.device)
    ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], place.new_full((1,), len(place))])
    starts = offsets[:-1] if include_last_offset else offsets
    member = (place >= starts[:, None]) & (place < ends[:, None])
    if padding_idx is not None:
        member = member & (indices != padding_idx % len(weight))
    return _reduced(rows, member, mode).to(dtype), None, None, None


def _plain_bag(ids: Tensor, w: Tensor, weights: Tensor | None) -> Tensor:
    return F.embedding_bag(ids, w, mode="sum", per_sample_weights=weights)


def _reduced(rows: Tensor, member: Tensor, mode: int) -> Tensor:
    """Sums, means or maxima of ``rows`` over the members of each bag; 0 for an empty one."""
    if mode == 2:
        inside = torch.where(member[..., None], rows[None], rows.new_full((), -torch.inf)).amax(1)
        return torch.where(member.any(1)[:, None], inside, torch.zeros_like(inside))
    share = member.to(rows.dtype)
    if mode == 1:
        share = share / share.sum(1, keepdim=True).clamp(min=1.0)
    return share @ rows


def _looked_up(
    tape: Tape, ids: Tensor, weight: Tensor, padding_idx: int | None, scale_grad_by_freq: bool, sparse: bool
) -> Any:
    use = tape.use(weight)
    assert use is not None
    if sparse:
        raise Unbatchable("an embedding with sparse gradients")
    if scale_grad_by_freq:
        raise Unbatchable("an embedding with scale_grad_by_freq")
    if use.transposed or use.weight.param.dim() != 2:
        return F.embedding(ids, tape.substituted(weight), padding_idx)
    asked_type(F.embedding, (ids, 1), (weight, 2))
    tape.expect(use, ids.numel())
    padding = None if padding_idx is None else padding_idx % len(weight)
    return tape.at_groups(partial(_at_groups, use, tape.anchor, padding), ids)


def _at_groups(use: Use, anchor: Tensor | None, padding: int | None, ids: Tensor) -> Tensor:
    w = use.weight.value[use.start : use.stop]
    flat = ids.reshape(len(ids), -1).long()
    y: Tensor = _Embedding.apply(flat, w, anchor, use, padding)  # type: ignore[no-untyped-call]
    return y.view(*ids.shape, w.shape[1])


class _Embedding(torch.autograd.Function):
    """Rows of every group's own weight; ``ids`` has shape ``(groups, rows)``."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        w: Tensor,
        anchor: Tensor | None,  # noqa: ARG004 - leads the backward pass here
        use: Use,
        padding: int | None,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.use, ctx.padding, ctx.width = use, padding, len(w)
        wide = use.weight.wide(w.dtype)
        moved = use.moved(wide)
        if moved is not None:
            y = moved.gather(1, ids[..., None].expand(-1, -1, w.shape[1]))
            return use.weight.rounded(y, w.dtype)
        y = w[ids].to(wide)
        along = use.along()
        if along is not None:
            y.mul_(column(1.0 + along, y).to(y.dtype))
        for left, right in use.products(wide):
            assert isinstance(right, Tensor)
            y.baddbmm_(at_columns(left, ids, right), right)
        return use.weight.rounded(y, w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            grad = grad.masked_fill((ids == ctx.padding)[..., None], 0.0)
        if ctx.use.weight.gradient is not None:
            ctx.use.record(OneHot(ids, ctx.width), grad, costs_of_embedding)
        gw = None
        if ctx.needs_input_grad[1]:
            gw = grad.new_zeros(ctx.width, grad.shape[2])
            gw.index_add_(0, ids.flatten(), grad.flatten(0, 1))
        ctx.use.weight.used()
        return None, gw, None, None, None
