"""Whether options, data, network and loss go together, found out before anything is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowland.deep.averaging import has_batch_norm, mode
from lowland.deep.config import TrainConfig
from lowland.deep.criterion import CROSS_ENTROPY, Criterion, are_logits
from lowland.deep.data import Split, TrainingData, to_float
from lowland.deep.functions import failure
from lowland.deep.losses import build_loss
from lowland.deep.network import mask_argument, outputs_of
from lowland.deep.new_network import require_trainable
from lowland.deep.seeding import generators_kept
from lowland.errors import InputError, require_default
from lowland.sam.buffers import Buffers

_OF_CLASSES = ("ce", "ce_offset", "gce", "smallest_k_ce")
_OF_LABELS = ("p_label_noise", "sgd_p_label_noise", "attack", "jac_reg_lambda", "rm_criterion")
_OF_IMAGES = ("augment", "attack", "export_images")
_OF_QUANTITIES = ("input_grad_reg_lambda", "jac_reg_lambda")


def require_meaning(config: TrainConfig, data: TrainingData) -> None:
    """Raises :class:`InputError` for options that say nothing of such data."""
    name = config.data_name
    if config.loss == "ce_offset" and data.num_classes != 2:
        raise InputError(f"loss ce_offset needs two classes, got {data.num_classes}.")
    if config.loss in _OF_CLASSES and not data.has_classes:
        raise InputError(
            f"loss must be mse or one of your own for the targets of {name}, which are numbers, "
            f"got {config.loss}."
        )
    if config.loss == "mse" and data.has_classes:
        raise InputError(
            f"loss must be one of classes for the targets of {name}, which are classes, got mse."
        )
    for is_so, names, because in (
        (not data.has_classes, _OF_LABELS, f"for {name}, whose targets are numbers"),
        (data.kind != "images", _OF_IMAGES, f"for {name}, which holds {data.kind} and no images"),
        (data.kind == "tokens", _OF_QUANTITIES, f"for {name}, whose tokens have no gradient"),
    ):
        if is_so:
            require_default(config, names, because)


def tried(config: TrainConfig, model: nn.Module, data: TrainingData) -> Criterion:
    """How the network's outputs are judged; what is the user's own is tried with two examples.

    Args:
        config: The run.
        model: Its network, on the device of the data.
        data: Its data.

    Raises:
        InputError: If the network cannot take the inputs, the loss cannot take the outputs, or the network
            cannot be trained.
    """
    if not config.is_own:
        return CROSS_ENTROPY
    few = data.train.head(2)
    _require_mask(config, model, data)
    outputs = _outputs(config, model, few)
    _outputs(config, model, data.train.head(config.group_size), training=True)
    if config.has_own_model:
        require_trainable(model, config.model)
        if not has_batch_norm(model):
            names = ("bn_stats", "freeze_bn_stats")
            require_default(config, names, f"for {config.model}, which has no batch normalization")
    has_errors = data.has_classes and are_logits(outputs, len(few), data.num_classes)
    if config.has_own_loss:
        _require_loss_runs(config, outputs, few.targets)
    else:
        _require_outputs(config, outputs, few, data)
    return Criterion.of(config, has_errors=has_errors)


def _require_mask(config: TrainConfig, model: nn.Module, data: TrainingData) -> None:
    is_padded = any(s.mask is not None and not bool(s.mask.all()) for s in data.parts.values())
    if is_padded and mask_argument(model) is None:
        raise InputError(
            f"model {config.model} must take a mask beside the tokens of {config.data_name}, whose lengths "
            "differ: forward(tokens, mask), true where there is a token."
        )


@torch.no_grad()
def _outputs(config: TrainConfig, model: nn.Module, few: Split, *, training: bool = False) -> Any:
    inputs = [to_float(argument) for argument in few.arguments]
    with mode(model, training=training), generators_kept(), Buffers(model).kept():
        try:
            return outputs_of(model, *inputs)
        except Exception as error:
            shape = "x".join(map(str, few.inputs.shape[1:]))
            group = f" in groups of {len(few)} to train on" if training else ""
            raise InputError(
                f"model {config.model} must take the inputs of {config.data_name}{group}, {shape} of "
                f"{str(inputs[0].dtype).removeprefix('torch.')} each, but it {failure(error)}."
            ) from error


def _require_outputs(config: TrainConfig, outputs: Any, few: Split, data: TrainingData) -> None:
    what = f"{data.num_classes} {'logits' if data.has_classes else 'values'}"
    fits = isinstance(outputs, Tensor) and (
        are_logits(outputs, len(few), data.num_classes)
        if data.has_classes
        else outputs.numel() == few.targets.numel()
    )
    if not fits or len(outputs) != len(few):
        raise InputError(
            f"model {config.model} must return {what} for each example of {config.data_name}, "
            f"got {_shown(outputs)} for {len(few)}."
        )


def _require_loss_runs(config: TrainConfig, outputs: Any, targets: Tensor) -> None:
    leaf = outputs.detach().float().requires_grad_() if isinstance(outputs, Tensor) else outputs
    try:
        value = build_loss(config)(leaf, targets)
    except Exception as error:
        raise InputError(
            f"loss {config.loss} must take outputs and targets, {_shown(outputs)} and {_shown(targets)}, "
            f"but it {failure(error)}."
        ) from error
    if not isinstance(value, Tensor) or value.shape not in ((), targets.shape[:1]):
        raise InputError(
            f"loss {config.loss} must return the mean over the examples that it is given, or one value for "
            f"each, got {_shown(value)} for {len(targets)}."
        )
    if isinstance(leaf, Tensor) and not value.requires_grad:
        raise InputError(f"loss {config.loss} must depend on the outputs that it is given, it does not.")
    if config.n_rm_pts > 0 and config.rm_criterion == "loss" and not value.dim():
        raise InputError(
            f"n_rm_pts needs a loss of one value for each example, {config.loss} returns their mean."
        )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
