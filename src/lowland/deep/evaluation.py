"""Loss, error, robust error and sharpness of a network on a split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowland.deep.attack import attacked
from lowland.deep.averaging import mode
from lowland.deep.config import TrainConfig
from lowland.deep.criterion import CROSS_ENTROPY, Criterion, is_wrong
from lowland.deep.data import Split, to_float
from lowland.deep.losses import as_logits
from lowland.deep.network import outputs_of
from lowland.deep.objective import Objective, in_float
from lowland.deep.seeding import derive_seed
from lowland.sam import sam_gradient

SHARPNESS_EXAMPLES = 256
SHARPNESS_M = 128
SMALL_RHO = 0.01


def evaluate(
    config: TrainConfig,
    model: nn.Module,
    split: Split,
    criterion: Criterion = CROSS_ENTROPY,
    *,
    prefix: str,
    limit: int,
) -> dict[str, float]:
    """Mean loss and error on the first ``limit`` examples of ``split``, in evaluation mode.

    Returns:
        ``{prefix}_loss``, and where targets are classes ``{prefix}_error``; where labels are noisy also
        ``{prefix}_error_true``, the error by the true labels, and ``{prefix}_error_clean`` and
        ``{prefix}_error_noisy``, the error on the examples whose label was kept and on those whose label was
        flipped, by the given labels. Errors are in [0, 1]. Empty for an empty split.
    """
    split = split.head(limit)
    if len(split) == 0:
        return {}
    outputs, losses = _judged(config, model, split, criterion)
    row = {f"{prefix}_loss": losses.mean().item()}
    if not criterion.has_errors:
        return row
    wrong = is_wrong(outputs, split.targets)
    row[f"{prefix}_error"] = _mean(wrong)
    flipped = split.targets != split.clean_targets
    if flipped.any():
        row[f"{prefix}_error_true"] = _mean(is_wrong(outputs, split.clean_targets))
        row[f"{prefix}_error_noisy"] = _mean(wrong[flipped])
        if not flipped.all():
            row[f"{prefix}_error_clean"] = _mean(wrong[~flipped])
    return row


def robust_error(config: TrainConfig, model: nn.Module, split: Split, *, limit: int) -> float:
    """Error on the first ``limit`` examples under the attack that ``config`` names."""
    split = split.head(limit)
    generator = torch.Generator(split.inputs.device).manual_seed(derive_seed(config.seed, "attack"))
    wrong = []
    with mode(model, training=False):
        for rows in _batches(len(split), config.batch_size_eval):
            images, labels = to_float(split.inputs[rows]), split.targets[rows]
            images = attacked(config, model, images, labels, generator)
            with torch.no_grad():
                wrong.append(is_wrong(outputs_of(model, images), labels))
    return _mean(torch.cat(wrong))


def one_step_sharpness(
    config: TrainConfig,
    model: nn.Module,
    split: Split,
    criterion: Criterion = CROSS_ENTROPY,
    *,
    rho: float,
) -> float:
    """Rise of the objective by one normalized ascent step of length ``rho``.

    Over the first 256 examples in groups of 128, in evaluation mode, the same for every run, so that
    runs with different m can be compared.
    """
    split = split.head(SHARPNESS_EXAMPLES)
    params = [p for p in model.parameters() if p.requires_grad]
    with mode(model, training=False):
        result = sam_gradient(
            Objective(config, model, criterion),
            params,
            (*map(to_float, split.arguments), split.targets),
            rho=rho,
            m=SHARPNESS_M,
            l2=config.l2_reg,
            module=model,
            diagnostics=True,
        )
    assert result.diagnostics is not None
    return result.diagnostics.sharpness.item()


def ranking(
    config: TrainConfig, model: nn.Module, split: Split, criterion: Criterion = CROSS_ENTROPY
) -> Tensor:
    """What ``rm_criterion`` ranks the examples of ``split`` by: their loss, or the prediction's entropy."""
    outputs, losses = _judged(config, model, split, criterion)
    if config.rm_criterion == "loss":
        return losses
    log_p = as_logits(outputs).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


@torch.no_grad()
def _judged(config: TrainConfig, model: nn.Module, split: Split, criterion: Criterion) -> tuple[Any, Tensor]:
    """The outputs for all examples, and their losses."""
    outputs, losses = [], []
    with mode(model, training=False):
        for rows in _batches(len(split), config.batch_size_eval):
            inputs = [to_float(argument[rows]) for argument in split.arguments]
            found = in_float(config.half_prec, model, *inputs)
            outputs.append(found)
            losses.append(criterion.losses(found, split.targets[rows]).float())
    return torch.cat(outputs) if criterion.has_errors else None, torch.cat(losses)


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _mean(flags: Tensor) -> float:
    return flags.double().mean().item()
