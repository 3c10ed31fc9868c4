"""The deep networks of the paper's figures at each scale."""

from __future__ import annotations

import dataclasses
from typing import Any

from lowland.deep import TrainConfig
from lowland.figures.paper.figure import Scale

SEEDS: dict[Scale, tuple[int, ...]] = {"quick": (0, 1, 2, 3, 4), "small": (0, 1, 2), "paper": (0, 1, 2)}
"""Of every deep network; the original's notebooks have the first three."""

_SETTINGS = {
    # 4,000 images without augmentation: interpolated in seconds, and what SAM changes can be seen.
    "quick": TrainConfig(
        dataset="mnist",
        frac_train=0.074,
        no_data_augm=True,
        model="fc",
        n_layers=2,
        model_width=512,
        epochs=40,
        batch_size=128,
        lr_max=0.1,
        lr_schedule="piecewise",
    ),
    "small": TrainConfig(
        dataset="cifar10",
        frac_train=0.112,
        no_data_augm=True,
        model="resnet_tiny_gn",
        model_width=16,
        epochs=40,
        batch_size=128,
        lr_max=0.1,
        lr_schedule="piecewise",
    ),
    "paper": TrainConfig(
        dataset="cifar10",
        model="resnet18",
        model_width=64,
        epochs=200,
        batch_size=128,
        lr_max=0.1,
        lr_schedule="piecewise",
        l2_reg=5e-4,
    ),
}
_DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN"}
_MODELS = {
    "fc": "MLP",
    "resnet18": "PreAct ResNet-18",
    "resnet18_gn": "PreAct ResNet-18 (GN)",
    "resnet34": "ResNet-34",
    "resnet_tiny_gn": "small PreAct ResNet (GN)",
}


def network(scale: Scale, **options: Any) -> TrainConfig:
    """The paper's first network, PreAct ResNet-18 on CIFAR-10, or what stands for it at a smaller scale."""
    return dataclasses.replace(_SETTINGS[scale], **options)


def networks(scale: Scale, **options: Any) -> list[TrainConfig]:
    """That one, and at the paper's scale its second, ResNet-34 on CIFAR-100."""
    first = network(scale, **options)
    if scale != "paper":
        return [first]
    return [first, dataclasses.replace(first, dataset="cifar100", model="resnet34")]


def with_seeds(configs: list[TrainConfig], scale: Scale) -> list[TrainConfig]:
    """Each with every seed of the scale."""
    return [dataclasses.replace(config, seed=seed) for config in configs for seed in SEEDS[scale]]


def network_label(config: TrainConfig) -> str:
    """Data set and network, as panels are called.

    Example:
        >>> network_label(network("paper")), network_label(network("quick"))
        ('CIFAR-10, PreAct ResNet-18', 'MNIST (7.4 %), MLP')
    """
    share = "" if config.frac_train == 1.0 else f" ({100 * config.frac_train:.3g} %)"
    model = _MODELS.get(config.model, config.model)
    return f"{_DATASETS.get(config.dataset, config.dataset)}{share}, {model}"


def method(config: TrainConfig) -> str:
    """What a run does, without its radius.

    Example:
        >>> method(network("quick")), method(network("quick", sam_rho=0.1, m=16, sam_iters=10))
        ('ERM', '16-SAM, 10 steps')
    """
    if config.add_weight_perturb_scale > 0.0:
        return "random"
    if not config.is_sam:
        return "ERM"
    if config.sam_use_prev_batch:
        return "n-SAM"
    name = f"{config.group_size}-{'USAM' if config.sam_no_grad_norm else 'SAM'}"
    return f"{name}, {config.sam_iters} steps" if config.sam_iters > 1 else name
