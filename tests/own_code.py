"""Networks, losses and data of a user's, as a module that Python finds."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn


def net(num_classes: int, input_shape: tuple[int, ...], width: int = 4) -> nn.Module:
    """A network with dropout and batch normalization for inputs of any shape."""
    size = int(np.prod(input_shape))
    layers = [nn.Flatten(), nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def for_photos(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A linear network with the same weights at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


class Noisy(nn.Module):
    """Draws from all three generators while it trains, and has weights that two layers share."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        size = int(np.prod(input_shape))
        self.a, self.b = nn.Linear(size, size), nn.Linear(size, size)
        self.b.weight = self.a.weight
        self.out = nn.Linear(size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x.flatten(1)).relu())
        if self.training:
            x = x * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand()))  # noqa: NPY002
        return self.out(x)


class Reader(nn.Module):
    """The mean of the embeddings of what is no padding."""

    def __init__(self, num_classes: int, vocab_size: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(vocab_size, 6), nn.Linear(6, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        kept = mask[..., None].to(self.embed.weight.dtype)
        return self.out((self.embed(tokens) * kept).sum(1) / kept.sum(1))


class Deaf(nn.Module):
    """Takes tokens without a mask."""

    def __init__(self, num_classes: int, vocab_size: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(vocab_size, 6), nn.Linear(6, num_classes)

    def forward(self, tokens: Tensor, flip: bool = False) -> Tensor:
        return self.out(self.embed(tokens).mean(1) * (-1 if flip else 1))


def frozen(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A first layer that nobody trains."""
    layer = nn.Linear(int(np.prod(input_shape)), 4).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), layer, nn.Linear(4, num_classes))


class Greedy(nn.Module):
    """Changes what it is given, in place."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out = nn.Linear(int(np.prod(input_shape)), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x -= 1.0
        return self.out(x.flatten(1))


class Odd(nn.Module):
    """Its ``forward`` calls itself something else, and it takes no mask."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out = nn.Linear(int(np.prod(input_shape)), num_classes)

    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        return this.out(x.flatten(1).float())


def any_name(**arguments: object) -> nn.Module:
    """Takes arguments of any name, and keeps them."""
    layer = nn.Linear(3, int(arguments["num_classes"]))  # type: ignore[call-overload]
    layer.arguments = arguments  # type: ignore[assignment]
    return layer


def mean_of_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over a group, as a scalar."""
    return nn.functional.smooth_l1_loss(outputs.reshape(targets.shape), targets)


def each_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A value for each example."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def unread(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """Does not depend on what it is given."""
    return torch.zeros(())


def wrong_shape(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """One value per output."""
    return outputs.square()


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over a group."""
    return nn.functional.mse_loss(outputs.reshape(targets.shape), targets, reduction="sum")


def broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs (n, 1) against targets (n,)."""
    return nn.functional.mse_loss(outputs, targets)


def drawing(outputs: Tensor, targets: Tensor) -> Tensor:
    """Asks the host for a number."""
    return nn.functional.cross_entropy(outputs, targets) * (1.0 if outputs.sum().item() > 0 else 2.0)


def failing(*_: object) -> None:
    """Raises."""
    raise ValueError("no such thing.\nand more")


def sequences(n: int, seed: int) -> tuple[list[np.ndarray], list[int]]:
    """Sequences of 2 to 6 tokens whose class is the parity of their sum."""
    rng = np.random.default_rng(seed)
    x = [rng.integers(1, 9, rng.integers(2, 7)) for _ in range(n)]
    return x, [int(row.sum() % 2) for row in x]


def text() -> dict[str, tuple[list[np.ndarray], list[int]]]:
    """Three parts of sequences."""
    return {"train": sequences(60, 0), "val": sequences(12, 1), "test": sequences(20, 2)}


class Drawn(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A map-style data set whose examples are drawn anew whenever they are asked for."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.randn(2, 3) + random.random() + float(np.random.rand()), i % 3  # noqa: NPY002


def drawn() -> Drawn:
    """It alone."""
    return Drawn()


def bright() -> tuple[np.ndarray, list[int]]:
    """Images whose pixels are no shares."""
    return np.full((60, 1, 3, 3), 7.0, np.float32), [i % 2 for i in range(60)]


def nothing() -> int:
    """No data."""
    return 3


def lazy(num_classes: int) -> nn.Module:
    """Layers that have no weights before they have seen inputs."""
    layers = [nn.Flatten(), nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4, num_classes))
