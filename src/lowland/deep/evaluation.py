"""Loss, error, robust error and sharpness of a network on a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowland.deep.attack import attacked, skip_start
from lowland.deep.averaging import mode
from lowland.deep.config import TrainConfig
from lowland.deep.criterion import CROSS_ENTROPY, Criterion, is_wrong
from lowland.deep.data import Split
from lowland.deep.losses import as_logits
from lowland.deep.network import outputs_of
from lowland.deep.objective import Objective, as_given, in_float
from lowland.deep.processes import Ranks
from lowland.deep.seeding import derive_seed
from lowland.sam import sam_gradient

SHARPNESS_EXAMPLES = 256
SHARPNESS_M = 128
SMALL_RHO = 0.01
_ALONE = Ranks()


def evaluate(
    config: TrainConfig,
    model: nn.Module,
    split: Split,
    criterion: Criterion = CROSS_ENTROPY,
    *,
    prefix: str,
    limit: int,
    ranks: Ranks = _ALONE,
) -> dict[str, float]:
    """Mean loss and error on the first ``limit`` examples of ``split``, in evaluation mode.

    Several processes share out the batches, and all return the same.

    Returns:
        ``{prefix}_loss``, and where targets are classes ``{prefix}_error``; where labels are noisy also
        ``{prefix}_error_true``, the error by the true labels, and ``{prefix}_error_clean`` and
        ``{prefix}_error_noisy``, the error on the examples whose label was kept and on those whose label was
        flipped, by the given labels. Errors are in [0, 1]. Empty for an empty split.
    """
    split = split.head(limit)
    if len(split) == 0:
        return {}
    losses, wrong, wrong_of_true = _judged(config, model, split, criterion, ranks, _notes, things=3)
    row = {f"{prefix}_loss": losses.mean().item()}
    if not criterion.has_errors:
        return row
    row[f"{prefix}_error"] = _mean(wrong)
    flipped = split.targets != split.clean_targets
    if flipped.any():
        row[f"{prefix}_error_true"] = _mean(wrong_of_true)
        row[f"{prefix}_error_noisy"] = _mean(wrong[flipped])
        if not flipped.all():
            row[f"{prefix}_error_clean"] = _mean(wrong[~flipped])
    return row


def robust_error(
    config: TrainConfig, model: nn.Module, split: Split, *, limit: int, ranks: Ranks = _ALONE
) -> float:
    """Error on the first ``limit`` examples under the attack of ``config``; processes share it out."""
    split = split.head(limit)
    generator = torch.Generator(split.inputs.device).manual_seed(derive_seed(config.seed, "attack"))
    wrong = torch.zeros(len(split), device=split.inputs.device)
    batches = _batches(len(split), config.batch_size_eval)
    own = range(len(batches))[ranks.part(len(batches))]
    with mode(model, training=False):
        for i, rows in enumerate(batches):
            images, labels = as_given(config, split.inputs[rows]), split.targets[rows]
            if i not in own:
                skip_start(images, generator)
                continue
            images = attacked(config, model, images, labels, generator)
            with torch.no_grad():
                wrong[rows] = is_wrong(outputs_of(model, images), labels).float()
    return _mean(ranks.summed([wrong])[0])


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
            tuple(as_given(config, argument) for argument in (*split.arguments, split.targets)),
            rho=rho,
            m=SHARPNESS_M,
            l2=config.l2_reg,
            module=model,
            diagnostics=True,
        )
    assert result.diagnostics is not None
    return result.diagnostics.sharpness.item()


def ranking(
    config: TrainConfig,
    model: nn.Module,
    split: Split,
    criterion: Criterion = CROSS_ENTROPY,
    *,
    ranks: Ranks = _ALONE,
) -> Tensor:
    """What ``rm_criterion`` ranks the examples of ``split`` by: their loss, or the prediction's entropy."""
    by = _entropies if config.rm_criterion == "entropy" else _losses
    return _judged(config, model, split, criterion, ranks, by)[0]


def _losses(outputs: Any, split: Split, criterion: Criterion) -> list[Tensor]:
    return [criterion.losses(outputs, split.targets)]


def _entropies(outputs: Any, *_: Any) -> list[Tensor]:
    log_p = as_logits(outputs).log_softmax(1)
    return [-(log_p.exp() * log_p).sum(1)]


def _notes(outputs: Any, split: Split, criterion: Criterion) -> list[Tensor]:
    """Losses, and which examples are misclassified by the labels and by the true ones."""
    losses = criterion.losses(outputs, split.targets)
    if not criterion.has_errors:
        return [losses, torch.zeros_like(losses), torch.zeros_like(losses)]
    return [losses, *(is_wrong(outputs, labels) for labels in (split.targets, split.clean_targets))]


_Judge = Callable[[Any, Split, Criterion], list[Tensor]]


@torch.no_grad()
def _judged(
    config: TrainConfig,
    model: nn.Module,
    split: Split,
    criterion: Criterion,
    ranks: Ranks,
    judge: _Judge,
    *,
    things: int = 1,
) -> Tensor:
    """What ``judge`` says of the outputs, in a row for each thing and a column for each example."""
    batches = _batches(len(split), config.batch_size_eval)
    own = batches[ranks.part(len(batches))]
    found = torch.zeros(things, len(split), dtype=config.torch_dtype, device=split.inputs.device)
    with mode(model, training=False):
        for rows in own:
            part = split.part(rows)
            outputs = in_float(config.half_prec, model, *(as_given(config, a) for a in part.arguments))
            said = judge(outputs, replace(part, targets=as_given(config, part.targets)), criterion)
            found[:, rows] = torch.stack([value.to(found.dtype) for value in said])
    (found,) = ranks.summed([found])
    return found


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _mean(flags: Tensor) -> float:
    return flags.double().mean().item()
