"""Small networks that are trained in seconds, on the embedded digits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.deep import TrainConfig, load_data
from lowland.deep.models import build_model
from lowland.sam import SAM
from networks import mlp


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, and the examples that it has learnt.

    Attributes:
        model: Gives logits of ten classes.
        x: Inputs.
        y: Classes.
    """

    model: nn.Module
    x: Tensor
    y: Tensor

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """The cross entropy of each example."""
        return F.cross_entropy(self.model(x), y, reduction="none")


class _Encoder(nn.Module):
    """The rows of an image are its tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.rows, self.head = nn.Linear(32, 32), nn.Linear(32, 10)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.rows(x.mean(1))).mean(1))


def _flat(*widths: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), mlp(32 * 32, *widths, 10))


def _resnet(name: str) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.AvgPool2d(2), build_model(name, num_classes=10, model_width=4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, float]]] = {
    "MLP": (lambda: _flat(128, 128), {}),
    "MLP, trained by SAM": (lambda: _flat(128, 128), {"rho": 0.1}),
    "linear": (_flat, {}),
    "ResNet with group norm": (_resnet("resnet_tiny_gn"), {}),
    "ResNet with batch norm": (_resnet("resnet_tiny"), {}),
    "transformer": (_Encoder, {"lr": 0.05}),
}
"""How each is made and trained."""


def trained(name: str, *, epochs: int = 20) -> Trained:
    """The same network each time, trained with momentum on batches of 64."""
    make, options = NETWORKS[name]
    digits = load_data(TrainConfig(dataset="digits")).train
    torch.manual_seed(0)
    model = make()
    x, y = digits.inputs.float() / 255, digits.targets
    x = x.expand(-1, 3, -1, -1) if "ResNet" in name else x
    sam = SAM(model, rho=options.get("rho", 0.0), m=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.get("lr", 0.1), momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            sam.backward(lambda x, y: F.cross_entropy(model(x), y), x[rows], y[rows])
            optimizer.step()
    return Trained(model.eval(), x, y)
