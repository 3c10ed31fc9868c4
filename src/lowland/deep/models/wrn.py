"""Wide residual networks."""

from collections import OrderedDict
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from lowland.deep.models.layers import Activation, conv1x1, conv3x3, dropout, stage


class WideBlock(nn.Module):
    """A pre-activation block with dropout between its convolutions.

    Zagoruyko & Komodakis (2016), *Wide Residual Networks*, arXiv 1605.07146, figure 1d. Where the shape
    changes, the shortcut is a 1x1 convolution of the activated input, otherwise the input itself.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, activation: Activation, droprate: float
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.convShortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.convShortcut = conv1x1(in_channels, channels, stride)
        self.activation = activation()
        self.dropout = dropout(droprate)

    def forward(
        self, x: Float[Tensor, "examples in_channels in_height in_width"]
    ) -> Float[Tensor, "examples channels height width"]:
        """The block's output."""
        activated = self.activation(self.bn1(x))
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(activated)
        hidden = self.dropout(self.activation(self.bn2(self.conv1(activated))))
        residual: Tensor = self.conv2(hidden)
        return shortcut + residual


class WideResNet(nn.Module):
    """A wide ResNet: a stem of 16 channels and three stages of ``16 k``, ``32 k`` and ``64 k`` channels.

    Zagoruyko & Komodakis (2016), arXiv 1605.07146, table 1; the last two stages halve the image.

    Args:
        image_shape: Channels, height and width; only the channels matter.
        num_outputs: Outputs per example.
        depth: Convolutions in all, shortcuts aside: four more than a multiple of six.
        model_width: The widening factor ``k``.
        activation: Makes the activations.
        droprate: Probability of dropping a unit between a block's convolutions.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        depth: int,
        model_width: int,
        activation: Activation,
        droprate: float,
    ) -> None:
        super().__init__()
        num_blocks, remainder = divmod(depth - 4, 6)
        assert remainder == 0, "a wide ResNet has three stages of two-convolution blocks"

        block = partial(WideBlock, activation=activation, droprate=droprate)

        def wide_stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
            blocks = stage(block, in_channels, channels, num_blocks=num_blocks, stride=stride)
            return nn.Sequential(OrderedDict(layer=blocks))

        width = 16 * model_width
        self.conv1 = conv3x3(image_shape[0], 16)
        self.block1 = wide_stage(16, width, 1)
        self.block2 = wide_stage(width, 2 * width, 2)
        self.block3 = wide_stage(2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.activation = activation()
        self.fc = nn.Linear(4 * width, num_outputs)

    def forward(
        self, x: Float[Tensor, "examples channels height width"]
    ) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        features = self.block3(self.block2(self.block1(self.conv1(x))))
        outputs: Tensor = self.fc(self.activation(self.bn1(features)).mean(dim=(2, 3)))
        return outputs
