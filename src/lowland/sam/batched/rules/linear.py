"""Products with a matrix: ``F.linear`` and the matrix products of ``torch``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowland.sam.batched.cost import costs_of_linear
from lowland.sam.batched.precision import reshaped, result_type, without_autocast
from lowland.sam.batched.tape import Tape, rule
from lowland.sam.batched.weights import Use
from lowland.sam.vectors.factors import add_through, column


@rule(F.linear)
def linear(tape: Tape, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """``x W^T + b``."""
    use = tape.use(weight)
    if use is None or weight.dim() != 2 or input.dim() == 0 or (bias is not None and bias.dim() != 1):
        return NotImplemented
    dtype = result_type(F.linear, (input, 2), (weight, 2), (bias, 1))
    return _product(tape, use, input, bias, dtype)


@rule(torch.matmul, Tensor.matmul, torch.mm, Tensor.mm)
def matmul(tape: Tape, input: Tensor, other: Tensor, **kwargs: Any) -> Any:
    """``x W``, with the weight on the right."""
    use = tape.use(other)
    if use is None or kwargs or other.dim() != 2 or input.dim() == 0:
        return NotImplemented
    return _product(tape, _flipped(use), input, None, result_type(torch.matmul, (input, 2), (other, 2)))


@rule(torch.addmm, Tensor.addmm)
def addmm(tape: Tape, input: Tensor, mat1: Tensor, mat2: Tensor, **kwargs: Any) -> Any:
    """``b + x W``."""
    use = tape.use(mat2)
    if use is None or kwargs or input.dim() != 1:
        return NotImplemented
    dtype = result_type(torch.addmm, (input, 1), (mat1, 2), (mat2, 2))
    return _product(tape, _flipped(use), mat1, input, dtype)


def _flipped(use: Use) -> Use:
    return Use(use.weight, use.start, use.stop, not use.transposed)


def _product(tape: Tape, use: Use, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Any:
    tape.expect(use, x.numel() // max(x.shape[-1], 1))
    return tape.at_groups(partial(_at_groups, use, tape.anchor, dtype), x, bias)


def _at_groups(use: Use, anchor: Tensor | None, dtype: torch.dtype, x: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.to(dtype)
    y: Tensor = without_autocast(_Linear.apply, x.to(dtype), use.matrix(dtype), bias, anchor, use)
    return y


class _Linear(torch.autograd.Function):
    """``x W_S^T + b_S`` for every group S; ``x`` has shape ``(groups, ..., p)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        anchor: Tensor | None,  # noqa: ARG004 - leads the backward pass here
        use: Use,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.has_bias = use, bias is not None
        return reshaped(_output(use, _rows(x), w, bias), (*x.shape[:-1], len(w)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        use: Use = ctx.use
        wants_x, wants_w, wants_bias, *_ = ctx.needs_input_grad
        shape, x, grad = x.shape, _rows(x), _rows(grad)
        gx = _input_gradient(use, grad, w).view(shape) if wants_x else None
        gw = grad.flatten(0, 1).t() @ x.flatten(0, 1) if wants_w else None
        gb = grad.sum(1) if wants_bias else None
        if use.weight.gradient is not None:
            use.record(grad, x, costs_of_linear)
        use.weight.used()
        return gx, gw, gb, None, None


def _rows(x: Tensor) -> Tensor:
    """``(groups, ..., p)`` as ``(groups, rows, p)``."""
    return x.reshape(len(x), -1, x.shape[-1])


def _output(use: Use, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    moved = None if use.weight.noise is not None else use.moved(x.dtype)
    if moved is not None:
        w_t = moved.transpose(1, 2)
        return torch.bmm(x, w_t) if bias is None else torch.baddbmm(bias[:, None], x, w_t)
    y, wide = _shared(use, x, w.t(), bias), use.weight.wide(x.dtype)
    added = use.added(x.dtype)
    if added is not None:
        y = y.to(wide).add_(torch.bmm(x, added.transpose(1, 2)))
    for left, right in use.products(wide):
        y = add_through(y.to(wide), x.to(wide), right, left)
    return use.weight.rounded(y, x.dtype)


def _input_gradient(use: Use, grad: Tensor, w: Tensor) -> Tensor:
    moved = None if use.weight.noise is not None else use.moved(grad.dtype)
    if moved is not None:
        return torch.bmm(grad, moved)
    gx, wide = _shared(use, grad, w, None), use.weight.wide(grad.dtype)
    added = use.added(grad.dtype)
    if added is not None:
        gx = gx.to(wide).add_(torch.bmm(grad, added))
    for left, right in use.products(wide):
        gx = add_through(gx.to(wide), grad.to(wide), left, right)
    return use.weight.rounded(gx, grad.dtype, backward=True)


def _shared(use: Use, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """The product with what all groups share, and with its multiples."""
    along = use.along()
    if along is None and bias is not None and bias.stride(0) == 0:
        return torch.addmm(bias[0], x.flatten(0, 1), matrix).view(*x.shape[:2], -1)
    y = (x.flatten(0, 1) @ matrix).view(*x.shape[:2], -1)
    if along is not None:
        y = y.to(use.weight.wide(y.dtype))
        y.mul_(column(1.0 + along, y).to(y.dtype))
    return y if bias is None else y.add_(bias[:, None])
