"""The optimizer by its name in ``torch.optim``."""

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor

from lowland.deep.config import TrainConfig
from lowland.errors import InputError, one_of

_DEFAULTS: dict[str, dict[str, object]] = {"SGD": {"momentum": 0.9}}
_UNUSABLE = {"LBFGS", "SparseAdam"}
"""They need a closure, and sparse gradients."""


def build_optimizer(config: TrainConfig, params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names, with its own options; SGD has momentum 0.9 by default.

    Raises:
        InputError: If there is no such optimizer, or it refuses the options.
    """
    names = {name.lower(): name for name in _optimizer_names()}
    one_of("optimizer", config.optimizer.lower(), names)
    name = names[config.optimizer.lower()]
    arguments = {**_DEFAULTS.get(name, {}), **config.optimizer_arguments}
    try:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(params, lr=config.lr_max, **arguments)
    except (TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"optimizer {config.optimizer} must accept its options: {reason}.") from None
    return optimizer


def _optimizer_names() -> list[str]:
    return [
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
        and name not in _UNUSABLE
    ]
