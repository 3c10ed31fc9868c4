"""Models of a few layers: linear, fully connected, convolutional, LeNet-5."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowland.deep.models.layers import Activation, dropout


class LinearModel(nn.Module):
    """One linear layer without bias on the flattened input.

    Args:
        image_shape: Of one input: channels, height and width, or any other.
        num_outputs: Outputs per example.
        scale_init: The l2 norm of the initial weight; 0 leaves PyTorch's default.
    """

    def __init__(self, *, image_shape: tuple[int, ...], num_outputs: int, scale_init: float) -> None:
        super().__init__()
        linear = nn.Linear(math.prod(image_shape), num_outputs, bias=False)
        if scale_init:
            with torch.no_grad():
                linear.weight.mul_(scale_init / linear.weight.norm())
        self._model = nn.Sequential(nn.Flatten(), linear)

    def forward(self, x: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        outputs: Tensor = self._model(x)
        return outputs


class FullyConnected(nn.Module):
    """Hidden linear layers on the flattened input, then a linear layer.

    Args:
        image_shape: Of one input: channels, height and width, or any other.
        num_outputs: Outputs per example.
        model_width: Units of a hidden layer.
        activation: Makes the activations.
        droprate: Probability of dropping a hidden unit.
        n_layers: Number of hidden layers.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        num_outputs: int,
        model_width: int,
        activation: Activation,
        droprate: float,
        n_layers: int,
    ) -> None:
        super().__init__()
        sizes = [math.prod(image_shape)] + [model_width] * n_layers
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation(), dropout(droprate)]
        self._model = nn.Sequential(*layers, nn.Linear(model_width, num_outputs))

    def forward(self, x: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        outputs: Tensor = self._model(x)
        return outputs


class ConvNet(nn.Module):
    """3x3 convolutions of stride 2, each of which halves the image (rounded up), then a linear layer.

    Args:
        image_shape: Channels, height and width.
        num_outputs: Outputs per example.
        model_width: Channels of every convolution.
        activation: Makes the activations.
        droprate: Probability of dropping a hidden unit.
        n_layers: Number of convolutions.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        model_width: int,
        activation: Activation,
        droprate: float,
        n_layers: int,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for _ in range(n_layers):
            convolution = nn.Conv2d(channels, model_width, 3, stride=2, padding=1)
            layers += [convolution, activation(), dropout(droprate)]
            channels, height, width = model_width, (height + 1) // 2, (width + 1) // 2
        linear = nn.Linear(channels * height * width, num_outputs)
        self._model = nn.Sequential(*layers, nn.Flatten(), linear)

    def forward(
        self, x: Float[Tensor, "examples channels height width"]
    ) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        outputs: Tensor = self._model(x)
        return outputs


class LeNet(nn.Module):
    """LeNet-5: two 5x5 convolutions (6 and 16 channels) with pooling, then layers of 120 and 84 units.

    LeCun et al. (1998), *Gradient-Based Learning Applied to Document Recognition*, section II.B, in today's
    form: max-pooling without weights, every channel connected, and the activation asked for.

    Args:
        image_shape: Channels, height and width; at least 16x16 pixels.
        num_outputs: Outputs per example.
        activation: Makes the activations.
    """

    def __init__(
        self, *, image_shape: tuple[int, int, int], num_outputs: int, activation: Activation
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        positions = math.prod(((size - 4) // 2 - 4) // 2 for size in (height, width))
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * positions, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_outputs)
        self.activation = activation()

    def forward(
        self, x: Float[Tensor, "examples channels height width"]
    ) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        features = self.pool(self.activation(self.conv1(x)))
        features = self.pool(self.activation(self.conv2(features))).flatten(start_dim=1)
        hidden = self.activation(self.fc2(self.activation(self.fc1(features))))
        outputs: Tensor = self.fc3(hidden)
        return outputs
