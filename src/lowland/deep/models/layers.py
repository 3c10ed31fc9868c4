"""What the models are made of: activations, norms, dropout and 3x3 convolutions."""

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from lowland.deep.models.dropout import Dropout
from lowland.errors import InputError

Activation = Callable[[], nn.Module]
"""Makes one activation."""

Norm = Callable[[int], nn.Module]
"""Makes one normalization of this many channels."""

_SOFTPLUS = re.compile(r"softplus(\d+(?:\.\d+)?)")


def parse_activation(name: str) -> Activation:
    r"""The activation of this name.

    Args:
        name: ``"relu"``, or ``"softplusA"`` with a positive number ``A``, such as ``"softplus10"``:
            :math:`\log(1 + e^{Ax}) / A`, which tends to ``relu`` as ``A`` grows.

    Raises:
        InputError: If it is neither.
    """
    if name == "relu":
        return nn.ReLU
    match = _SOFTPLUS.fullmatch(name)
    if match is None or float(match[1]) == 0:
        raise InputError(
            f"activation must be 'relu' or 'softplusA' with a positive number A, such as 'softplus10', "
            f"got {name!r}."
        )
    return partial(nn.Softplus, beta=float(match[1]))


def batch_norm(_width: int) -> Norm:
    """Batch normalization, whatever the width of the model."""
    return nn.BatchNorm2d


def group_norm(model_width: int) -> Norm:
    """Group normalization with ``model_width / 2`` groups at every depth: two channels each, or more.

    Raises:
        InputError: If ``model_width`` is odd.
    """
    if model_width % 2:
        raise InputError(f"model_width must be even for a model with group normalization, got {model_width}.")
    return partial(nn.GroupNorm, model_width // 2)


def dropout(droprate: float) -> nn.Module:
    """Dropout, or the identity at 0, so that a model without dropout draws no random numbers."""
    return Dropout(droprate) if droprate else nn.Identity()


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A bias-free 3x3 convolution that divides height and width by ``stride``, rounded up."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """The bias-free 1x1 convolution of a shortcut between two shapes."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def stage(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    channels: int,
    *,
    num_blocks: int,
    stride: int,
) -> nn.Sequential:
    """Blocks in a row, of which the first changes the shape.

    Args:
        block: Makes a block, given its input channels, output channels and stride.
        in_channels: Channels that enter the stage.
        channels: Channels that leave every block.
        num_blocks: Number of blocks.
        stride: What the first block divides height and width by.
    """
    rest = (block(channels, channels, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(block(in_channels, channels, stride), *rest)
