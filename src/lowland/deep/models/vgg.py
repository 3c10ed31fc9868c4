"""The VGG network of sixteen layers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowland.deep.models.layers import Activation

_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Channels, as multiples of the width, and number of convolutions of each stage."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours of ImageNet."""


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, max-pooling after each, and three linear layers; no norm.

    Simonyan & Zisserman (2015), *Very Deep Convolutional Networks*, arXiv 1409.1556, table 1, column D,
    with linear layers as wide as the last convolution. Before them comes the mean over the image, which
    after five poolings of 32x32 pixels is one position. As in the original code, and in none of its other
    models, images of three colours are standardized by the mean and deviation of ImageNet.

    Args:
        image_shape: Channels, height and width; only the channels matter. Of another number than three
            they are taken as they are.
        num_outputs: Outputs per example.
        model_width: Channels of the first stage.
        activation: Makes the activations.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        model_width: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        channels = image_shape[0]
        mean, deviation = (_MEAN, _DEVIATION) if channels == 3 else ((0.0,), (1.0,))
        # No part of the state, as in the original's checkpoints.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)
        features: list[nn.Module] = []
        for multiple, depth in _STAGES:
            for _ in range(depth):
                features += [nn.Conv2d(channels, multiple * model_width, 3, padding=1), activation()]
                channels = multiple * model_width
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Linear(channels, channels),
            activation(),
            nn.Linear(channels, channels),
            activation(),
            nn.Linear(channels, num_outputs),
        )

    def forward(
        self, x: Float[Tensor, "examples channels height width"]
    ) -> Float[Tensor, "examples outputs"]:
        """The outputs (logits) of each example."""
        standard = (x - self.mean) / self.deviation
        outputs: Tensor = self.classifier(self.features(standard).mean(dim=(2, 3)))
        return outputs
