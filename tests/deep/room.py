"""Small data, small configs, and an objective that notes what it sees."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.deep import TrainConfig, TrainState
from lowland.deep.data import Split, TrainingData

CPU = torch.device("cpu")


def make_split(
    n: int,
    *,
    shape: tuple[int, int, int] = (1, 4, 4),
    classes: int = 3,
    flipped: float = 0.0,
    seed: int = 0,
    first: int = 0,
) -> Split:
    """Random images whose label is their brightest part, some labels flipped; rows ``first`` and on."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, *shape), generator=generator).to(torch.uint8)
    parts = images.flatten(1).float().tensor_split(classes, dim=1)
    clean = torch.stack([part.mean(1) for part in parts], dim=1).argmax(1)
    labels = clean.clone()
    chosen = torch.randperm(n, generator=generator)[: round(flipped * n)]
    labels[chosen] = (labels[chosen] + 1) % classes
    return Split(images, labels, clean, torch.arange(first, first + n))


def make_data(
    train: int = 40,
    *,
    shape: tuple[int, int, int] = (1, 4, 4),
    classes: int = 3,
    flipped: float = 0.0,
) -> TrainingData:
    options: dict[str, Any] = {"shape": shape, "classes": classes}
    return TrainingData(
        make_split(train, flipped=flipped, seed=1, first=100, **options),
        make_split(24, flipped=flipped, seed=2, **options),
        make_split(24, seed=3, **options),
        classes,
        shape,
    )


def small(**options: Any) -> TrainConfig:
    """A run of 2 epochs with 5 steps each on :func:`make_data`, at a constant learning rate."""
    chosen = {
        "dataset": "digits",
        "model": "fc",
        "model_width": 8,
        "batch_size": 8,
        "epochs": 2,
        "lr_schedule": "constant",
    } | options
    if chosen["model"] == "linear":
        chosen["model_width"] = None
    return TrainConfig(**chosen)


def make_state(data: TrainingData | None = None, **options: Any) -> TrainState:
    return TrainState(small(**options), data or make_data(), CPU)


@dataclass
class Call:
    """One evaluation of the objective."""

    inputs: Tensor
    targets: Tensor
    params: list[Tensor]


class Recorder:
    """In place of a state's objective: the same, and a note of each call."""

    def __init__(self, state: TrainState) -> None:
        self.inner, self.state = state.objective, state
        self.calls: list[Call] = []
        state.objective = self

    def __call__(self, images: Tensor, labels: Tensor) -> Any:
        params = [p.detach().clone() for p in self.state.params]
        self.calls.append(Call(images.detach().clone(), labels.clone(), params))
        return self.inner(images, labels)


def run_steps(state: TrainState, count: int) -> None:
    for _ in range(count):
        if state.iteration == state.steps_per_epoch:
            state.next_epoch()
        state.step()


def seen_batches(count: int, data: TrainingData | None = None, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """The batches of the first ``count`` steps, as the objective of a run sees them."""
    state = make_state(data, **options)
    recorder = Recorder(state)
    run_steps(state, count)
    assert len(recorder.calls) == count
    return [(call.inputs, call.targets) for call in recorder.calls]


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def gradient(model: nn.Module, images: Tensor, labels: Tensor, l2: float = 0.0) -> list[Tensor]:
    """The gradient of the mean loss with plain torch, and of ``l2 / 2 * ||w||^2``."""
    params = list(model.parameters())
    gradients = torch.autograd.grad(mean_loss(model, images, labels), params)
    return [g + l2 * p.detach() for g, p in zip(gradients, params, strict=True)]


def length(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).norm()


def weights(state: TrainState) -> list[Tensor]:
    return [p.detach().clone() for p in state.params]


def set_weights(model: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 2e-6) -> None:
    """All tensors together agree, relative to the length of what was wanted."""
    assert len(found) == len(wanted)
    difference = length([f - w for f, w in zip(found, wanted, strict=True)])
    assert difference <= tolerance * length(wanted) + 1e-12


def pairs(first: dict[str, Tensor], second: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    assert first.keys() == second.keys()
    return ((first[name], second[name]) for name in first)


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs(first, second))


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
