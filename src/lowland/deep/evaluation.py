"""Loss, error, robust error and sharpness of a network on a split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland.deep.attack import attacked
from lowland.deep.averaging import mode
from lowland.deep.config import TrainConfig
from lowland.deep.data import Split, to_float
from lowland.deep.losses import as_logits, cross_entropy
from lowland.deep.objective import Objective, autocast, is_wrong
from lowland.deep.seeding import derive_seed
from lowland.sam import sam_gradient

SHARPNESS_EXAMPLES = 256
SHARPNESS_M = 128
SMALL_RHO = 0.01


def evaluate(
    config: TrainConfig, model: nn.Module, split: Split, *, prefix: str, limit: int
) -> dict[str, float]:
    """Mean loss and error on the first ``limit`` examples of ``split``, in evaluation mode.

    Returns:
        ``{prefix}_loss`` and ``{prefix}_error``; where labels are noisy also ``{prefix}_error_true``,
        the error by the true labels, and ``{prefix}_error_clean`` and ``{prefix}_error_noisy``, the error
        on the examples whose label was kept and on those whose label was flipped, by the given labels.
        Errors are in [0, 1]. Empty for an empty split.
    """
    split = split.head(limit)
    if len(split) == 0:
        return {}
    outputs = _outputs(config, model, split)
    labels = split.labels
    wrong = is_wrong(outputs, labels)
    row = {
        f"{prefix}_loss": cross_entropy(outputs, labels).mean().item(),
        f"{prefix}_error": _mean(wrong),
    }
    flipped = labels != split.clean_labels
    if flipped.any():
        row[f"{prefix}_error_true"] = _mean(is_wrong(outputs, split.clean_labels))
        row[f"{prefix}_error_noisy"] = _mean(wrong[flipped])
        if not flipped.all():
            row[f"{prefix}_error_clean"] = _mean(wrong[~flipped])
    return row


def robust_error(config: TrainConfig, model: nn.Module, split: Split, *, limit: int) -> float:
    """Error on the first ``limit`` examples under the attack that ``config`` names."""
    split = split.head(limit)
    generator = torch.Generator(split.images.device).manual_seed(derive_seed(config.seed, "attack"))
    wrong = []
    with mode(model, training=False):
        for rows in _batches(len(split), config.batch_size_eval):
            images, labels = to_float(split.images[rows]), split.labels[rows]
            images = attacked(config, model, images, labels, generator)
            with torch.no_grad():
                wrong.append(is_wrong(model(images), labels))
    return _mean(torch.cat(wrong))


def one_step_sharpness(config: TrainConfig, model: nn.Module, split: Split, *, rho: float) -> float:
    """Rise of the objective by one normalized ascent step of length ``rho``.

    Over the first 256 examples in groups of 128, in evaluation mode, the same for every run, so that
    runs with different m can be compared.
    """
    split = split.head(SHARPNESS_EXAMPLES)
    params = [p for p in model.parameters() if p.requires_grad]
    with mode(model, training=False):
        result = sam_gradient(
            Objective(config, model),
            params,
            (to_float(split.images), split.labels),
            rho=rho,
            m=SHARPNESS_M,
            l2=config.l2_reg,
            module=model,
            diagnostics=True,
        )
    assert result.diagnostics is not None
    return result.diagnostics.sharpness.item()


def ranking(config: TrainConfig, model: nn.Module, split: Split) -> Tensor:
    """What ``rm_criterion`` ranks the examples of ``split`` by: their loss, or the prediction's entropy."""
    outputs = _outputs(config, model, split)
    if config.rm_criterion == "loss":
        return cross_entropy(outputs, split.labels)
    log_p = as_logits(outputs).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


@torch.no_grad()
def _outputs(config: TrainConfig, model: nn.Module, split: Split) -> Tensor:
    with mode(model, training=False), autocast(config.half_prec, split.images.device):
        batches = _batches(len(split), config.batch_size_eval)
        return torch.cat([model(to_float(split.images[rows])).float() for rows in batches])


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _mean(flags: Tensor) -> float:
    return flags.double().mean().item()
