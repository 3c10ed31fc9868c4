"""Whether options, data, network and loss go together, found out before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowland.deep.averaging import has_batch_norm, mode
from lowland.deep.config import TrainConfig
from lowland.deep.criterion import CROSS_ENTROPY, Criterion, are_logits
from lowland.deep.data import Split, TrainingData
from lowland.deep.functions import errors_told
from lowland.deep.network import mask_argument, outputs_of
from lowland.deep.new_network import require_trainable
from lowland.deep.objective import as_given
from lowland.deep.seeding import generators_kept
from lowland.errors import InputError, require_default
from lowland.sam.buffers import Buffers

_OF_CLASSES = ("ce", "ce_offset", "gce", "smallest_k_ce")
_OF_LABELS = ("p_label_noise", "sgd_p_label_noise", "attack", "jac_reg_lambda", "rm_criterion")
_OF_LOGITS = ("attack", "jac_reg_lambda", "rm_criterion")
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
    if config.attack != "none" and not _are_pixels(data.train.inputs):
        raise InputError(f"attack needs images with pixels in [0, 1], got others in {name}.")
    for is_so, names, because in (
        (not data.has_classes, _OF_LABELS, f"for {name}, whose targets are numbers"),
        (data.kind != "images", _OF_IMAGES, f"for {name}, which holds {data.kind} and no images"),
        (data.kind == "tokens", _OF_QUANTITIES, f"for {name}, whose tokens have no gradient"),
    ):
        if is_so:
            require_default(config, names, because)


def _are_pixels(inputs: Tensor) -> bool:
    return inputs.dtype == torch.uint8 or bool(((inputs >= 0) & (inputs <= 1)).all())


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
    require_mask(model, data, network=f"model {config.model}", named=config.data_name)
    outputs = _outputs(config, model, few)
    _outputs(config, model, data.train.head(config.group_size), training=True)
    if config.has_own_model:
        require_trainable(model, config.model)
        if not has_batch_norm(model):
            names = ("bn_stats", "freeze_bn_stats")
            require_default(config, names, f"for {config.model}, which has no batch normalization")
    has_errors = data.has_classes and are_logits(outputs, len(few), data.num_classes)
    criterion = Criterion.of(config, has_errors=has_errors)
    if not config.has_own_loss:
        _require_outputs(config, outputs, few, data)
        return criterion
    value = require_loss_runs(criterion, outputs, few.targets)
    if config.n_rm_pts > 0 and config.rm_criterion == "loss" and not value.dim():
        raise InputError(
            f"n_rm_pts needs a loss of one value for each example, {config.loss} returns their mean."
        )
    if not has_errors:
        require_default(config, _OF_LOGITS, f"for {config.model}, whose outputs are no logits")
    return criterion


def require_mask(model: nn.Module, data: TrainingData, *, network: str, named: str) -> None:
    """Raises :class:`InputError` for padded tokens and a network that would take padding for tokens."""
    is_padded = any(s.mask is not None and not bool(s.mask.all()) for s in data.parts.values())
    if is_padded and mask_argument(model) is None:
        raise InputError(
            f"{network} must take a mask beside the tokens of {named}, whose lengths differ: "
            "forward(tokens, mask), true where there is a token."
        )


@torch.no_grad()
def _outputs(config: TrainConfig, model: nn.Module, few: Split, *, training: bool = False) -> Any:
    inputs = [as_given(config, argument).clone() for argument in few.arguments]
    kind = str(inputs[0].dtype).removeprefix("torch.")
    shape = "x".join(map(str, few.inputs.shape[1:]))
    group = f" in groups of {len(few)} to train on" if training else ""
    what = f"model {config.model} must take the inputs of {config.data_name}{group}, {shape} of {kind} each"
    with mode(model, training=training), generators_kept(), Buffers(model).kept(), errors_told(what):
        outputs = outputs_of(model, *inputs)
    require_untouched(inputs, f"model {config.model}")
    return outputs


def require_untouched(inputs: Sequence[Tensor], network: str) -> None:
    """Raises :class:`InputError` if a network wrote into copies of its inputs: it would into the data."""
    if any(argument._version for argument in inputs):
        raise InputError(f"{network} must leave the inputs that it is given as they are.")


def _require_outputs(config: TrainConfig, outputs: Any, few: Split, data: TrainingData) -> None:
    count = data.num_classes
    what = f"{count} {'logits' if data.has_classes else 'value' if count == 1 else 'values'}"
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


def require_loss_runs(criterion: Criterion, outputs: Any, targets: Tensor) -> Tensor:
    """What a loss of the user's own makes of outputs.

    Raises:
        InputError: If it fails, or returns neither their mean nor one value for each.
    """
    is_tensor = isinstance(outputs, Tensor)
    leaf = outputs.detach().float().requires_grad_() if is_tensor else outputs
    name = criterion.name
    what = f"loss {name} must take outputs and targets, {_shown(outputs)} and {_shown(targets)}"
    with errors_told(what), warnings.catch_warnings(), generators_kept():
        warnings.filterwarnings("error", message="Using a target size")  # broadcasting is no mean
        value = criterion.loss(leaf, targets)
        twice = (torch.cat([leaf, leaf]), torch.cat([targets, targets])) if is_tensor else None
        both = None if twice is None else criterion.loss(*twice)
    if not isinstance(value, Tensor) or value.shape not in ((), targets.shape[:1]):
        raise InputError(
            f"loss {name} must return the mean over the examples that it is given, or one value for "
            f"each, got {_shown(value)} for {len(targets)}."
        )
    if is_tensor and not value.requires_grad:
        raise InputError(f"loss {name} must depend on the outputs that it is given, it does not.")
    if both is not None and not value.dim() and _is_twice(both, value):
        raise InputError(
            f"loss {name} must return the mean over the examples that it is given, got their sum."
        )
    return value


def _is_twice(both: Tensor, value: Tensor) -> bool:
    """Whether the loss of the examples and their copies is twice the loss, which is not 0."""
    return abs(both.item() - 2 * value.item()) < 1e-3 * abs(value.item())


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
