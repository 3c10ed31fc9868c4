"""How long a run will take, before it is begun: operations counted, this machine's speed measured."""

from __future__ import annotations

import functools
import math
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from lowland.deep import TrainConfig
from lowland.deep.flatness import FlatnessConfig
from lowland.deep.launch import IMAGE_SIZE
from lowland.deep.models import build_model, is_convolutional
from lowland.deep.view import SceneryConfig
from lowland.diagonal.experiment import DiagonalConfig, planned
from lowland.diagonal.theorem2 import Theorem2Config
from lowland.relu.experiment import ReluConfig

_SHAPES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "digits": (1_297, (1, 8, 8)),
    "mnist": (60_000, (1, 28, 28)),
    "svhn": (73_257, (3, 32, 32)),
    "cifar10": (50_000, (3, 32, 32)),
    "cifar100": (50_000, (3, 32, 32)),
}
"""Training images, and their shape."""
_TEST_IMAGES = 10_000
_PASS = 0.003
"""Seconds of a forward and a backward pass whatever its size: Python, and calls of small kernels."""
_EFFICIENCY = 0.5
"""Of a network's passes, beside a product of large matrices."""
_PER_STEP = {"diagonal": 2e-6, "relu": 3e-6, "theorem2": 1e-4}
"""Seconds of a step of the small models on the reference machine."""


def seconds_of_training(config: TrainConfig) -> float:
    """Of a training run on one core; NaN if its data or its network are the user's own."""
    if config.data is not None or config.has_own_model:
        return math.nan
    images, _ = _SHAPES.get(config.dataset, _SHAPES["cifar10"])
    examples = 0.9 * images * config.frac_train
    steps = config.epochs * (examples // config.batch_size)
    climbing = config.sam_epoch_frac_end - config.sam_epoch_frac_start if config.is_sam else 0.0
    passes = 1.0 + climbing * config.sam_iters
    one = _PASS + config.batch_size * _gradient(config)
    seen = 0.2 * config.epochs * (2 * _TEST_IMAGES + examples)  # full evaluations, with averaged weights too
    return steps * passes * one + seen * _gradient(config) / 3.0


def seconds_of_measures(network: TrainConfig, config: FlatnessConfig) -> float:
    """Of measures of a trained network on one core; ascents dominate."""
    worst = (config.steps + (config.longer or 0)) * config.restarts
    ascents = {"worst-case": worst, "suboptimality": config.steps + 2, "one-step": 2}
    searches = sum(ascents.get(name, 0) for name in config.measure) * len(config.rho)
    products = sum(
        2 * config.products for name in config.measure if name in {"eigenvalues", "trace", "density"}
    )
    passes = 2.0 * searches * len(config.m) + products
    return config.n_eval * passes * _gradient(network) + 1.0


def seconds_of_line(network: TrainConfig, config: SceneryConfig) -> float:
    """Of the line between two networks on one core."""
    return 2.0 * config.n_eval * config.points * _gradient(network) / 3.0 + 1.0


def seconds_of_simulation(config: DiagonalConfig | ReluConfig | Theorem2Config) -> float:
    """Of an experiment on small models on one core."""
    if isinstance(config, DiagonalConfig):
        plans = [plan for _, _, _, plan in planned(config)]
        scale = config.n * config.d / 600 * (0.5 if config.kernel == "algebraic" else 1.0)
        return _PER_STEP["diagonal"] * scale * sum(phase.steps for plan in plans for phase in plan.phases)
    if isinstance(config, ReluConfig):
        climbs = sum(rho > 0 for rho in config.rho)
        return _PER_STEP["relu"] * config.seeds * climbs * config.steps * config.width / 100
    return _PER_STEP["theorem2"] * config.steps * config.seeds * len(config.m)


def _gradient(config: TrainConfig) -> float:
    """Seconds of a forward and a backward pass per example."""
    _, operations = _counted(*_network(config))
    return 3.0 * operations / (_EFFICIENCY * _speed())


def weights_of(config: TrainConfig) -> int:
    """Number of weights of a network."""
    return _counted(*_network(config))[0]


def _network(config: TrainConfig) -> tuple[str, int | None, int, tuple[int, int, int], int]:
    """What tells one network from another."""
    _, shape = _SHAPES.get(config.dataset, _SHAPES["cifar10"])
    if is_convolutional(config.model):
        shape = (shape[0], IMAGE_SIZE, IMAGE_SIZE)
    return (
        config.model,
        config.model_width,
        config.n_layers,
        shape,
        100 if config.dataset == "cifar100" else 10,
    )


@functools.lru_cache
def _counted(
    model: str, width: int | None, layers: int, shape: tuple[int, int, int], classes: int
) -> tuple[int, float]:
    """Weights, and floating-point operations of a forward pass per example."""
    with torch.random.fork_rng():
        network = build_model(
            model, num_classes=classes, model_width=width, image_shape=shape, n_layers=layers
        ).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(torch.zeros(1, *shape))
    return sum(p.numel() for p in network.parameters()), float(counted.get_total_flops())


@functools.lru_cache
def _speed() -> float:
    """Operations per second of one core in a product of matrices: the best of a few."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, times = torch.ones(512, 512), []
        for _ in range(6):
            started = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - started)
        return float(2 * 512**3 / min(times))
    finally:
        torch.set_num_threads(threads)
