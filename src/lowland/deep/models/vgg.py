"""The VGG network of sixteen layers."""

from jaxtyping import Float
from torch import Tensor, nn

from lowland.deep.models.layers import Activation

_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Channels, as multiples of the width, and number of convolutions of each stage."""


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, max-pooling after each, and three linear layers; no norm.

    Simonyan & Zisserman (2015), *Very Deep Convolutional Networks*, arXiv 1409.1556, table 1, column D,
    with linear layers as wide as the last convolution. Before them comes the mean over the image, which
    after five poolings of 32x32 pixels is one position.

    Args:
        image_shape: Channels, height and width; only the channels matter.
        num_outputs: Outputs per example.
        model_width: Channels of the first stage.
        activation: Makes the activations.
    """

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
        outputs: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return outputs
