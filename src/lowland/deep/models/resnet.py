"""Residual networks with the activation after the addition."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from lowland.deep.models.layers import Activation, conv1x1, conv3x3, dropout, stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a shortcut, then activated.

    He et al. (2016), *Deep Residual Learning for Image Recognition*, arXiv 1512.03385, figure 2; where the
    shape changes the shortcut is a 1x1 convolution with batch norm (their option B).
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, activation: Activation, droprate: float
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))
        self.activation = activation()
        self.dropout = dropout(droprate)

    def forward(
        self, x: Float[Tensor, "examples in_channels in_height in_width"]
    ) -> Float[Tensor, "examples channels height width"]:
        """The block's output."""
        hidden = self.dropout(self.activation(self.bn1(self.conv1(x))))
        output: Tensor = self.activation(self.bn2(self.conv2(hidden)) + self.shortcut(x))
        return output


class ResNet(nn.Module):
    """A ResNet for small images: a 3x3 stem, four stages of :class:`BasicBlock`, the mean over the image.

    He et al. (2016), arXiv 1512.03385. The last three stages double the channels and halve the image.

    Args:
        image_shape: Channels, height and width; only the channels matter.
        num_outputs: Outputs per example.
        num_blocks: Blocks of each of the four stages.
        model_width: Channels of the stem and the first stage.
        activation: Makes the activations.
        droprate: Probability of dropping a unit between a block's convolutions.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        num_blocks: tuple[int, int, int, int],
        model_width: int,
        activation: Activation,
        droprate: float,
    ) -> None:
        super().__init__()
        block = partial(BasicBlock, activation=activation, droprate=droprate)
        width = model_width
        self.conv1 = conv3x3(image_shape[0], width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(block, width, width, num_blocks=num_blocks[0], stride=1)
        self.layer2 = stage(block, width, 2 * width, num_blocks=num_blocks[1], stride=2)
        self.layer3 = stage(block, 2 * width, 4 * width, num_blocks=num_blocks[2], stride=2)
        self.layer4 = stage(block, 4 * width, 8 * width, num_blocks=num_blocks[3], stride=2)
        self.activation = activation()
        self.linear = nn.Linear(8 * width, num_outputs)

    def forward(
        self, x: Float[Tensor, "examples channels height width"]
    ) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        stem = self.activation(self.bn1(self.conv1(x)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(stem))))
        outputs: Tensor = self.linear(features.mean(dim=(2, 3)))
        return outputs
