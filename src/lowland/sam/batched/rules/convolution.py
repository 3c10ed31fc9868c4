"""Convolutions of one, two and three dimensions, and transposed ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowland.sam.batched.cost import Product, costs_of_convolution
from lowland.sam.batched.precision import correction_dtype, reshaped, result_type, without_autocast
from lowland.sam.batched.tape import Tape, rule
from lowland.sam.batched.weights import Use
from lowland.sam.vectors.factors import Factor, column
from lowland.sam.vectors.patches import Patches, Window
from lowland.sam.vectors.per_group import LowRank

_backward = torch.ops.aten.convolution_backward


@dataclass(frozen=True)
class Geometry:
    """Options of a convolution, one number per dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None, times: int = 1) -> Tensor:
        """The convolution, with ``times`` as many groups."""
        return torch.convolution(
            x, w, bias, self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
            self.groups * times,
        )  # fmt: skip

    def backward(
        self, grad: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool], times: int = 1
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of input and weight, those that are ``wanted``."""
        gx, gw, _ = _backward(
            grad, x, w, None, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups * times, [*wanted, False],
        )  # fmt: skip
        return gx, gw

    def window(self, w: Tensor) -> Window | None:
        """What an output position sees, where the gradient is a sum of patches times output gradients."""
        if self.transposed or self.groups > 1:
            return None
        return Window(tuple(w.shape[2:]), self.stride, self.padding, self.dilation)


def by_rows(x: Tensor, groups: int) -> Tensor:
    """``(examples, channels, positions)`` as ``(groups, rows, channels)``."""
    return x.transpose(1, 2).reshape(groups, -1, x.shape[1])


@rule(torch.conv1d, torch.conv2d, torch.conv3d)
def convolution(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution."""
    if tape.use(weight) is None:
        return NotImplemented
    size = weight.dim() - 2
    stride, dilation = _each(stride, size), _each(dilation, size)
    if padding == "same":
        input, padding = _padded(input, weight, dilation), 0
    padding = _each(0 if padding == "valid" else padding, size)
    return _convolve(
        tape, input, weight, bias, Geometry(stride, padding, dilation, False, (0,) * size, groups)
    )


@rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def transposed_convolution(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """A transposed convolution."""
    if tape.use(weight) is None:
        return NotImplemented
    size = weight.dim() - 2
    stride, padding, output_padding, dilation = (
        _each(v, size) for v in (stride, padding, output_padding, dilation)
    )
    return _convolve(
        tape, input, weight, bias, Geometry(stride, padding, dilation, True, output_padding, groups)
    )


def _each(value: Any, size: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * size if len(values) == 1 else values


def _padded(x: Tensor, w: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """What ``padding="same"`` adds; an odd one at the end."""
    total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    return F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])


def _convolve(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Any:
    use = tape.use(weight)
    assert use is not None
    alone = x.dim() == weight.dim() - 1
    x = x.unsqueeze(0) if alone else x
    plain = (_TRANSPOSED if geometry.transposed else _CONVOLUTIONS)[x.dim() - 3]
    dtype = result_type(plain, (x, x.dim()), (weight, x.dim()), (bias, 1))
    tape.expect(use)
    y = tape.at_groups(partial(_at_groups, use, geometry, tape.anchor, dtype), x, bias)
    return y.squeeze(0) if alone else y


_CONVOLUTIONS = [torch.conv1d, torch.conv2d, torch.conv3d]
_TRANSPOSED = [torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d]


def _at_groups(
    use: Use,
    geometry: Geometry,
    anchor: Tensor | None,
    dtype: torch.dtype,
    x: Tensor,
    bias: Tensor | None,
) -> Tensor:
    asked = dtype
    if use.weight.noise is not None and use.weight.move is not None:
        dtype = torch.float32  # products of half precision with half precision hide what is added to them
    w = use.weight.value.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    y: Tensor = without_autocast(
        _Convolution.apply, x.to(dtype).flatten(0, 1), w, bias, anchor, use, geometry
    )
    return reshaped(y.to(asked), (*x.shape[:2], *y.shape[1:]))


class _Convolution(torch.autograd.Function):
    """The convolution of every group with its own weights; ``x`` holds all examples of all groups in turn."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        anchor: Tensor | None,  # noqa: ARG004 - leads the backward pass here
        use: Use,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.geometry = use, geometry
        groups = use.weight.groups
        if use.weight.is_formed and _few_rows(geometry, groups, x, w):
            seen = Patches(_grouped(x, groups), _window(geometry, w))
            rows = torch.bmm(seen.dense(), _matrices(use, x).transpose(1, 2))
            rows = rows if bias is None else rows.add_(bias[:, None])
            maps = rows.transpose(1, 2).reshape(groups, len(w), -1, *seen.outputs)
            return maps.transpose(1, 2).flatten(0, 1)
        if use.weight.is_formed:
            w_all = use.weight.moved().to(x.dtype).flatten(0, 1)
            b_all = None if bias is None else bias.reshape(-1)
            return _unside(geometry.forward(_aside(x, groups), w_all, b_all, groups), groups)
        y, wide, own = _shared(use, geometry, x, w, bias), correction_dtype(x.dtype), None
        for left, right in use.products(wide):
            assert isinstance(left, Tensor)
            assert isinstance(right, Patches)
            own = own or Patches(_grouped(x.to(wide), groups), right.window)
            y.add_(_as_maps(torch.bmm(own.pairs(right), left), y))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        use, geometry = ctx.use, ctx.geometry
        wants_x, wants_w, wants_bias, *_ = ctx.needs_input_grad
        groups = use.weight.groups
        gx, gw = _gradients(use, geometry, grad, x, w, (wants_x, wants_w))
        gb = _grouped(grad.flatten(2).sum(2), groups).sum(1) if wants_bias else None
        if use.weight.gradient is not None:
            _record(use, geometry, grad, x, w)
        use.weight.used()
        return gx, gw, gb, None, None, None


def _shared(use: Use, geometry: Geometry, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with what all groups share, and with its multiples."""
    along, groups = use.along(), use.weight.groups
    if along is None and (bias is None or bias.stride(0) == 0):
        return geometry.forward(x, w, None if bias is None else bias[0])
    y = _grouped(geometry.forward(x, w, None), groups)
    if along is not None:
        y.mul_(column(1.0 + along, y).to(y.dtype))
    if bias is not None:
        y.add_(bias.view(groups, 1, -1, *[1] * (x.dim() - 2)))
    return y.flatten(0, 1)


def _gradients(
    use: Use, geometry: Geometry, grad: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradient of the input at the perturbed weights, and of the weights summed over the groups."""
    groups = use.weight.groups
    wants_x, wants_w = wanted
    if use.weight.is_formed:
        gx = None
        if wants_x and _few_rows(geometry, groups, x, w):
            through = torch.bmm(by_rows(grad.flatten(2), groups), _matrices(use, x))
            gx = Patches(_grouped(x, groups), _window(geometry, w)).folded(through).flatten(0, 1)
        elif wants_x:
            w_all = use.weight.moved().to(x.dtype).flatten(0, 1)
            shape_only = x.reshape(len(x) // groups, -1, *x.shape[2:])
            found, _ = geometry.backward(_aside(grad, groups), shape_only, w_all, (True, False), groups)
            gx = None if found is None else _unside(found, groups)
        gw = geometry.backward(grad, x, w, (False, True))[1] if wants_w else None
        return gx, gw
    gx, gw = geometry.backward(grad, x, w, wanted) if wants_x or wants_w else (None, None)
    along = use.along()
    if gx is not None and along is not None:
        parts = _grouped(gx, groups)
        gx = (parts * column(1.0 + along, parts).to(gx.dtype)).flatten(0, 1)
    wide = correction_dtype(x.dtype)
    if gx is not None:
        for left, right in use.products(wide):
            assert isinstance(left, Tensor)
            assert isinstance(right, Patches)
            own = Patches(_grouped(x, groups), right.window)
            through = torch.bmm(by_rows(grad.flatten(2).to(wide), groups), left.transpose(1, 2))
            gx.add_(_as_maps(torch.bmm(own.spread(through, right), right.points()), gx))
    return gx, gw


def _record(use: Use, geometry: Geometry, grad: Tensor, x: Tensor, w: Tensor) -> None:
    """The gradient of each group: as patches and output gradients, or formed by one grouped convolution."""
    groups, weight = use.weight.groups, use.weight
    rows, points = grad[:, 0].numel() // groups, x[:, 0].numel() // groups
    cost = costs_of_convolution(rows, points, len(w), x.shape[1], w.shape[2:], weight.planned_groups)
    forms = weight.forms(cost, apart=rows * len(w) + points * x.shape[1], formed=w.numel())
    apart = geometry.window(w) is not None and not weight.form and not forms
    if apart or _few_rows(geometry, groups, x, w):
        factor = Factor(by_rows(grad.flatten(2), groups), Patches(_grouped(x, groups), _window(geometry, w)))
        product = Product(rows, len(w), w[0].numel(), cost.apart if apart else cost.formed)
        weight.record(LowRank(factor, 0, len(w)), form=not apart, product=product)
        return
    shape_only = w.new_empty(groups * len(w), *w.shape[1:])
    _, found = geometry.backward(_aside(grad, groups), _aside(x, groups), shape_only, (False, True), groups)
    assert found is not None
    assert weight.gradient is not None
    weight.gradient.add_dense(found.view(groups, *w.shape))
    weight.products.append(Product(rows, len(w), w[0].numel(), cost.formed))


def _few_rows(geometry: Geometry, groups: int, x: Tensor, w: Tensor) -> bool:
    """Whether a group's output positions are so few that writing out what they see costs less than filters.

    The kernels of grouped convolutions reorder the filters of every group first.
    """
    window = geometry.window(w)
    positions = 0 if window is None else torch.Size(window.positions(x.shape[2:])).numel()
    return window is not None and positions * (len(x) // groups) < len(w)


def _window(geometry: Geometry, w: Tensor) -> Window:
    window = geometry.window(w)
    assert window is not None
    return window


def _matrices(use: Use, x: Tensor) -> Tensor:
    """The filters of every group as matrices."""
    return use.weight.moved().to(x.dtype).flatten(2)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """``(groups * m, ...)`` as ``(groups, m, ...)``."""
    return x.view(groups, -1, *x.shape[1:])


def _aside(x: Tensor, groups: int) -> Tensor:
    """Groups side by side as channels: ``(m, groups * channels, ...)``."""
    m = len(x) // groups
    return x.view(groups, m, *x.shape[1:]).transpose(0, 1).reshape(m, -1, *x.shape[2:])


def _unside(y: Tensor, groups: int) -> Tensor:
    """Groups one after the other again: ``(groups * m, channels, ...)``."""
    return y.view(len(y), groups, -1, *y.shape[2:]).transpose(0, 1).flatten(0, 1)


def _as_maps(rows: Tensor, like: Tensor) -> Tensor:
    """``(groups, rows, channels)`` in the shape of ``like``, a batch of maps."""
    return rows.reshape(len(like), -1, rows.shape[-1]).transpose(1, 2).reshape(like.shape).to(like.dtype)
