"""Layer, group, instance and RMS norm: each example by itself, with the weights of its group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowland.sam.batched.precision import reshaped, result_type
from lowland.sam.batched.tape import Tape, rule
from lowland.sam.precision import is_half, working


@rule(torch.layer_norm)
def layer_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001 - the function's
) -> Any:
    """Over the last dimensions."""
    dtype = result_type(_plain_layer_norm, (input, 2), (weight, 1), (bias, 1))

    def at_groups(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        shape = list(normalized_shape)
        fused = w is not None and b is not None and w.dtype == b.dtype == x.dtype and not _autocast(x)
        if fused:
            y: Tensor = _LayerNorm.apply(x, w, b, shape, eps)  # type: ignore[no-untyped-call]
            return y
        return _affine(torch.layer_norm(_with(w, x), shape, None, None, eps), w, b).to(dtype)

    return tape.at_groups(at_groups, input, weight, bias)


def _plain_layer_norm(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    return torch.layer_norm(x, [1], w, b)


def _with(w: Tensor | None, x: Tensor) -> Tensor:
    """``x`` in the type of its product with ``w``."""
    return x if w is None else x.to(torch.promote_types(x.dtype, w.dtype))


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


class _LayerNorm(torch.autograd.Function):
    """Layer norm of ``(groups, ..., *shape)`` with each group's own scale and shift.

    The gradients of scale and shift are sums over a group's rows, which matrix products take; what is
    normalized is made again from the mean and the deviation in place of being kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, shape: list[int], eps: float) -> Tensor:
        ctx.shape, ctx.eps, ctx.shared = shape, eps, w.stride(0) == 0 and b.stride(0) == 0
        if ctx.shared:
            y, mean, rstd = torch.native_layer_norm(x, shape, w[0], b[0], eps)
        else:
            y, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
            torch.addcmul(_aligned(b, y, shape), y, _aligned(w, y, shape), out=y)
        ctx.save_for_backward(x, w, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, rstd = ctx.saved_tensors
        gx = gw = gb = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            found = _sums(working(grad), working(x), *_statistics(ctx, x, mean, rstd), w)
            gw, gb = (s.to(w.dtype) for s in found)
        if ctx.needs_input_grad[0]:
            weight = w[0] if ctx.shared else None
            scaled = grad if ctx.shared else grad * _aligned(w, grad, ctx.shape)
            gx = torch.ops.aten.native_layer_norm_backward(
                scaled, x, ctx.shape, mean, rstd, weight, None, [True, False, False]
            )[0]
        return gx, gw, gb, None, None


def _aligned(t: Tensor, like: Tensor, shape: Sequence[int]) -> Tensor:
    """Each group's own scale or shift, against rows of that group."""
    return t.reshape(len(t), *[1] * (like.dim() - 1 - len(shape)), *shape)


def _statistics(ctx: Any, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each row; anew in half precision, whose sums cancel."""
    if not is_half(x):
        return mean, rstd
    var, mean = torch.var_mean(x.float(), [*range(-len(ctx.shape), 0)], correction=0)
    return mean, (var + ctx.eps).rsqrt()


def _sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over each group's rows of ``grad`` times what was normalized, and of ``grad``."""
    groups, width = len(x), w[0].numel()
    rows = grad.reshape(groups, -1, width)
    deviation = rstd.reshape(groups, 1, -1)
    shift = mean.reshape(groups, 1, -1) * deviation
    sums = torch.bmm(torch.cat([torch.ones_like(shift), shift], 1), rows)
    products = torch.bmm(deviation, rows * x.reshape(rows.shape))[:, 0]
    return (products - sums[:, 1]).view(w.shape), sums[:, 0].reshape(w.shape)


@rule(torch.rms_norm)
def rms_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """Over the last dimensions, without centering."""
    dtype = result_type(_plain_rms_norm, (input, 2), (weight, 1))

    def at_groups(x: Tensor, w: Tensor | None) -> Tensor:
        return _affine(torch.rms_norm(_with(w, x), list(normalized_shape), None, eps), w, None).to(dtype)

    return tape.at_groups(at_groups, input, weight)


def _plain_rms_norm(x: Tensor, w: Tensor | None) -> Tensor:
    return torch.rms_norm(x, [1], w)


def _affine(y: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """Scale and shift with each group's own."""

    def aligned(t: Tensor) -> Tensor:
        return _aligned(t, y, t.shape[1:])

    if w is None:
        return y if b is None else y + aligned(b)
    return y * aligned(w) if b is None else torch.addcmul(aligned(b), y, aligned(w))


@rule(torch.group_norm)
def group_norm(
    tape: Tape,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001 - the function's
) -> Any:
    """Over groups of channels."""
    result_type(_plain_group_norm, (input, 2), (weight, 1), (bias, 1))
    function = partial(_of_channels, num_groups, eps)
    return tape.at_groups(function, input, weight, bias)


def _plain_group_norm(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    return torch.group_norm(x, 1, w, b)


@rule(torch.instance_norm)
def instance_norm(
    tape: Tape,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,  # noqa: ARG001 - the function's
) -> Any:
    """Over each channel; or by running statistics."""
    if not use_input_stats:
        return by_statistics(tape, input, weight, bias, running_mean, running_var, eps)
    result_type(plain_batch_norm, (input, 2), (weight, 1), (bias, 1))
    if tape.outside.moves_stats:
        tape.at_groups(partial(_track, tape, running_mean, running_var, momentum), input)
    return tape.at_groups(partial(_of_channels, input.shape[1], eps), input, weight, bias)


def _track(tape: Tape, mean: Tensor | None, var: Tensor | None, momentum: float, x: Tensor) -> Tensor:
    var_of, mean_of = torch.var_mean(x.detach().flatten(3), dim=3)
    tape.outside.statistics(mean, mean_of.mean(1), momentum)
    tape.outside.statistics(var, var_of.mean(1), momentum)
    return x.new_zeros(len(x))


def _of_channels(num_groups: int, eps: float, x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """Group norm of ``(groups, m, channels, ...)``: one example whose channels are everybody's.

    So the kernel that normalizes applies each group's own scale, and its backward pass sums each
    group's own gradient.
    """
    groups, m, channels = x.shape[:3]
    whole = x.reshape(1, groups * m * channels, -1)

    def everybodys(t: Tensor | None) -> Tensor | None:
        return None if t is None else t[:, None].expand(groups, m, channels).reshape(-1)

    y = torch.group_norm(whole, groups * m * num_groups, everybodys(w), everybodys(b), eps)
    return reshaped(y, x.shape)


def by_statistics(
    tape: Tape,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
) -> Any:
    """Normalization by given statistics, as in evaluation."""
    assert mean is not None
    assert var is not None
    tape.outside.read(mean)
    tape.outside.read(var)
    dtype = result_type(plain_batch_norm, (input, 2), (weight, 1), (bias, 1), (mean, 1), (var, 1))
    return tape.at_groups(partial(_by_statistics, mean, var, eps, dtype), input, weight, bias)


def plain_batch_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, mean: Tensor | None = None, var: Tensor | None = None
) -> Tensor:
    """Batch norm of a few numbers, to ask torch which types it takes."""
    return torch.batch_norm(x, w, b, mean, var, mean is None, 0.1, 1e-5, torch.backends.cudnn.enabled)


def _by_statistics(
    mean: Tensor,
    var: Tensor,
    eps: float,
    result: torch.dtype,
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
) -> Tensor:
    groups, channels = len(x), x.shape[2]
    dtype = torch.promote_types(x.dtype, var.dtype)
    scale = (var.to(dtype) + eps).rsqrt().expand(groups, channels)
    scale = scale if w is None else scale * w
    shift = -mean.to(dtype) * scale
    shift = shift if b is None else shift + b
    shape = (groups, 1, channels, *[1] * (x.dim() - 3))
    return torch.addcmul(shift.view(shape), x.to(dtype), scale.view(shape)).to(result)
