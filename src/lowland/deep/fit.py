"""Whether a network can be run on a data set at all, found out with one example before it is measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lowland.deep.network import outputs_of
from lowland.errors import InputError

Shape = Sequence[int]
Entered = list[tuple[str, nn.Module, Tensor]]
_OF_SHAPES = re.compile(
    "shapes cannot be multiplied|^The size of tensor a .* must match|^shape .* is invalid for input of size"
)
"""What PyTorch says where numbers of rows and columns do not go together, outside of a layer of its own."""
_SLIDING = (_ConvNd, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class Needed:
    """What outputs must be: logits that tell apart so many classes, or so many values."""

    classes: int = 0
    values: int = 0


def require_fit(
    model: nn.Module,
    arguments: Sequence[Tensor],
    needed: Needed | None,
    *,
    network: str,
    data: str,
    trained_on: Shape | None,
) -> Any:
    """What ``model`` returns for one example.

    An error of the network itself is left as it is. Said to be of the images' shape is only one in a layer
    that got what it cannot take, or of an operation on shapes if the network's own is not known; and none is
    if the images are of the shape that it was made for.

    Args:
        model: The network, in evaluation mode.
        arguments: One example in a batch of its own, as the network is given it.
        needed: What its outputs must be; anything if ``None``.
        network: Its name.
        data: The data set's name.
        trained_on: Shape of the images that it was made for, as far as it is known.

    Raises:
        InputError: If it cannot take such images, or does not return a logit for each class.
    """
    shape = tuple(arguments[0].shape[1:])
    is_image = len(shape) == 3
    # Some networks take one channel for three by broadcasting, and would be another network.
    if trained_on is not None and (trained_on[0] != shape[0] if is_image else len(trained_on) != len(shape)):
        raise InputError(_unfit(network, data, shape, trained_on))
    is_known = trained_on is not None and tuple(trained_on) == shape
    outputs, why = _outputs(model, arguments, may_fail=not is_known, says_nothing=trained_on is None)
    if why:
        raise InputError(_unfit(network, data, shape, trained_on, why))
    if needed is not None:
        _require_needed(outputs, needed, network, data)
    return outputs


def _require_needed(outputs: Any, needed: Needed, network: str, data: str) -> None:
    got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if needed.values:
        if not isinstance(outputs, Tensor) or outputs.numel() != needed.values:
            raise InputError(
                f"{network} must return {needed.values} values for each example, got {got} for one."
            )
        return
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != 1 or not outputs.shape[1]:
        raise InputError(f"{network} must return a row of logits for each example, got {got} for one.")
    told_apart = max(2, outputs.shape[1])  # one output is the logit difference of two classes
    if needed.classes > told_apart:
        raise InputError(
            f"{network} must tell apart all classes of {data}, which has {needed.classes}, "
            f"but its outputs are for {told_apart}."
        )


@torch.no_grad()
def _outputs(
    model: nn.Module, arguments: Sequence[Tensor], *, may_fail: bool, says_nothing: bool
) -> tuple[Any, str]:
    """What the network returns, or why it cannot take such an input."""
    with _watched(model) as entered, torch.random.fork_rng(devices=[]):
        try:
            return outputs_of(model, *arguments), ""
        except RuntimeError as error:
            why = _refused(*entered[-1]) if entered else ""
            if not why and says_nothing and _OF_SHAPES.search(str(error)):
                why = str(error).partition("\n")[0].rstrip(".")
            if not (may_fail and why):
                raise
            return None, why


@contextmanager
def _watched(model: nn.Module) -> Iterator[Entered]:
    """The layers that were entered, with what each was given."""
    entered: Entered = []

    def entering(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                entered.append((name, module, args[0]))

        return hook

    handles = [
        module.register_forward_pre_hook(entering(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, _BatchNorm, nn.GroupNorm, *_SLIDING))
    ]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _refused(name: str, layer: nn.Module, given: Tensor) -> str:
    """Why a layer cannot take a tensor; empty if it can."""
    where = f"layer {name}" if name else "it"
    if isinstance(layer, nn.Linear):
        wrong = given.shape[-1:] != (layer.in_features,)
        return f"{where} needs {layer.in_features} values, got {given.shape[-1]}" if wrong else ""
    channels = _channels(layer)
    if channels is not None and given.shape[1:2] != (channels,):
        return f"{where} needs {channels} channels, got {given.shape[1] if given.dim() > 1 else 'none'}"
    if not isinstance(layer, _SLIDING):
        return ""
    return f"{where} gets images that are too small for it" if _is_too_small(layer, given) else ""


def _channels(layer: nn.Module) -> int | None:
    if isinstance(layer, _ConvNd):
        return layer.in_channels
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    return layer.num_features if isinstance(layer, _BatchNorm) else None


def _is_too_small(layer: nn.Module, given: Tensor) -> bool:
    sizes = given.shape[2:]
    kernel, padding, dilation = (
        _each(getattr(layer, name, default), len(sizes))
        for name, default in (("kernel_size", 1), ("padding", 0), ("dilation", 1))
    )
    return any(
        size + 2 * pad < reach * (width - 1) + 1
        for size, width, pad, reach in zip(sizes, kernel, padding, dilation, strict=True)
    )


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number per direction; padding may be a word, with which every size fits."""
    if isinstance(value, str):
        return (10**9,) * count
    return tuple(value) if isinstance(value, Sequence) else (value,) * count


def _unfit(network: str, data: str, shape: Shape, trained_on: Shape | None, why: str = "") -> str:
    wanted = "the shape that it was made for" if trained_on is None else _written(trained_on)
    because = f": {why}" if why else ""
    what = "images" if len(shape) == 3 else "inputs"
    return f"{network} must be given {what} of {wanted}, but those of {data} are {_written(shape)}{because}."


def _written(shape: Shape) -> str:
    return "x".join(map(str, shape))
