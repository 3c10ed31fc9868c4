"""The network that a run's config names: one of ours by its name, or what a function of the user's makes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowland.deep.averaging import mode
from lowland.deep.config import TrainConfig
from lowland.deep.data import TrainingData, to_float
from lowland.deep.functions import called, errors_told
from lowland.deep.models import build_model
from lowland.deep.network import outputs_of
from lowland.errors import InputError


def new_network(config: TrainConfig, data: TrainingData) -> nn.Module:
    """The network that ``config`` names for such data, initialized from the default generator.

    Raises:
        InputError: If it cannot be made for such data.
    """
    network = _network(config, data)
    return network.double() if config.dtype == "float64" else network


def _network(config: TrainConfig, data: TrainingData) -> nn.Module:
    if config.has_own_model:
        return own_network(config.model, config.model_arguments, data)
    if data.kind == "tokens":
        raise InputError(
            f"model must be one of your own, package.module:function, for tokens, got {config.model}."
        )
    outputs = {"num_classes" if data.has_classes else "num_values": data.num_classes}
    return build_model(
        config.model,
        **outputs,
        model_width=config.model_width,
        image_shape=data.input_shape,
        activation=config.activation,
        droprate=config.droprate,
        n_layers=config.n_layers,
        scale_init=config.scale_init,
    )


def own_network(name: str, arguments: Mapping[str, Any], data: TrainingData | None) -> nn.Module:
    """The network that ``package.module:function`` makes.

    The function is given those of ``num_classes`` (or the number of values to predict), ``input_shape`` (of
    one example) and ``vocab_size`` (of tokens) that it takes, unless the user gives them.

    Args:
        name: The function.
        arguments: What the user gives it.
        data: What it is made for, if that is known.

    Raises:
        InputError: If there is no such function, it fails, or it returns something else.
    """
    offered: dict[str, Any] = {}
    if data is not None:
        offered = {"num_classes": data.num_classes, "input_shape": data.input_shape}
        offered |= {"vocab_size": data.vocab_size} if data.vocab_size else {}
    network = called(name, "model", arguments, offered)
    if not isinstance(network, nn.Module):
        raise InputError(f"model {name} must return a torch.nn.Module, got {type(network).__name__}.")
    if next(network.parameters(), None) is None:
        raise InputError(f"model {name} must return a network with parameters, got none.")
    if data is not None and any(is_lazy(p) for p in (*network.parameters(), *network.buffers())):
        _make_late_layers(network, name, data)
    return network


@torch.no_grad()
def _make_late_layers(network: nn.Module, name: str, data: TrainingData) -> None:
    """Runs the network once, so that layers which wait for their first input have weights."""
    with mode(network, training=False), errors_told(f"model {name} must take the data's inputs"):
        outputs_of(network, *map(to_float, data.train.head(2).arguments))


def require_trainable(network: nn.Module, name: str) -> None:
    """Raises :class:`InputError` for a network of the user's that cannot be trained and kept.

    Args:
        network: It.
        name: Its function.
    """
    if not any(p.requires_grad for p in network.parameters()):
        raise InputError(f"model {name} must have parameters that require gradients, got none.")
    odd = [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(f"model {name} must have a state_dict of tensors, got something else as {odd[0]}.")
    if isinstance(network, torch.jit.ScriptModule) or any(p.is_complex() for p in network.parameters()):
        raise InputError(
            f"model {name} must be a plain module of real weights, got {type(network).__name__}."
        )
    with errors_told(f"model {name} must be one that copy.deepcopy copies"):
        copy.deepcopy(network)
