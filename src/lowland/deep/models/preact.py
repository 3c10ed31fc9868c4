"""Pre-activation residual networks."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from lowland.deep.models.layers import Activation, Norm, conv1x1, conv3x3, dropout, stage


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each behind its norm and activation, added to a shortcut.

    He et al. (2016), *Identity Mappings in Deep Residual Networks*, arXiv 1603.05027, figure 1b. Where the
    shape changes, the shortcut is a 1x1 convolution of the activated input (their appendix), otherwise the
    input itself.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        norm: Norm,
        activation: Activation,
        droprate: float,
    ) -> None:
        super().__init__()
        self.bn1 = norm(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = norm(channels)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, channels, stride))
        self.activation = activation()
        self.dropout = dropout(droprate)

    def forward(
        self, x: Float[Tensor, "examples in_channels in_height in_width"]
    ) -> Float[Tensor, "examples channels height width"]:
        """The block's output."""
        activated = self.activation(self.bn1(x))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        hidden = self.dropout(self.activation(self.bn2(self.conv1(activated))))
        residual: Tensor = self.conv2(hidden)
        return shortcut + residual


class PreActResNet(nn.Module):
    """A pre-activation ResNet for small images.

    The stem is one 3x3 convolution; four stages of :class:`PreActBlock` follow, of which the last three
    double the channels and halve the image; then norm, activation, the mean over the image and a linear
    layer (He et al., 2016, arXiv 1603.05027). That last activation is always ReLU, as in the original code.

    Args:
        image_shape: Channels, height and width; only the channels matter.
        num_outputs: Outputs per example.
        num_blocks: Blocks of each of the four stages.
        norm: Given the width, the norm of the model: ``batch_norm`` or ``group_norm``.
        model_width: Channels of the stem and the first stage.
        activation: Makes the activations of the blocks.
        droprate: Probability of dropping a unit between a block's convolutions.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        num_blocks: tuple[int, int, int, int],
        norm: Callable[[int], Norm],
        model_width: int,
        activation: Activation,
        droprate: float,
    ) -> None:
        super().__init__()
        make_norm = norm(model_width)
        block = partial(PreActBlock, norm=make_norm, activation=activation, droprate=droprate)
        width = model_width
        self.conv1 = conv3x3(image_shape[0], width)
        self.layer1 = stage(block, width, width, num_blocks=num_blocks[0], stride=1)
        self.layer2 = stage(block, width, 2 * width, num_blocks=num_blocks[1], stride=2)
        self.layer3 = stage(block, 2 * width, 4 * width, num_blocks=num_blocks[2], stride=2)
        self.layer4 = stage(block, 4 * width, 8 * width, num_blocks=num_blocks[3], stride=2)
        self.bn = make_norm(8 * width)
        self.activation = nn.ReLU()
        self.linear = nn.Linear(8 * width, num_outputs)

    def forward(
        self, x: Float[Tensor, "examples channels height width"]
    ) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        outputs: Tensor = self.linear(self.activation(self.bn(features)).mean(dim=(2, 3)))
        return outputs
