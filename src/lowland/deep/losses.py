"""Losses of a batch: one value per example, or their mean.

A network for two classes has one output f, the logit of class 1; elsewhere it counts as the logits
(0, f), whose cross-entropy is the logistic loss of f. Some have both logits, as in the original code.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lowland.deep.config import TrainConfig
from lowland.deep.functions import function_named

Outputs = Float[Tensor, "examples outputs"]
Labels = Int[Tensor, " examples"]
Losses = Float[Tensor, " kept"]
Targets = Labels | Float[Tensor, " examples"] | Float[Tensor, "examples values"]
LossFunction = Callable[[Tensor, Tensor], Tensor]


def as_logits(outputs: Outputs) -> Float[Tensor, "examples classes"]:
    """The network's outputs as one logit per class."""
    if outputs.shape[1] > 1:
        return outputs
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1)


def cross_entropy(outputs: Outputs, labels: Labels) -> Losses:
    """Cross-entropy of each example; for two classes the logistic loss of the logit difference."""
    return F.cross_entropy(as_logits(outputs), labels, reduction="none")


def offset_logistic(outputs: Outputs, labels: Labels, *, offset: float) -> Losses:
    r"""Logistic loss with an offset in the exponent, :math:`\log(1 + e^{-s f + c})`, :math:`s = \pm 1`."""
    logits = as_logits(outputs)
    sign = 2 * labels.to(logits.dtype) - 1
    return F.softplus(offset - sign * (logits[:, 1] - logits[:, 0]))


def generalized_cross_entropy(outputs: Outputs, labels: Labels, *, q: float) -> Losses:
    r"""Generalized cross-entropy :math:`(1 - p_y^q) / q` (Zhang & Sabuncu, 2018, eq. 6)."""
    return -torch.expm1(-q * cross_entropy(outputs, labels)) / q


def smallest_cross_entropies(outputs: Outputs, labels: Labels, *, dropped: float) -> Losses:
    """The cross-entropies without the share ``dropped`` of largest ones; at least one is kept."""
    losses = cross_entropy(outputs, labels)
    kept = max(1, len(losses) - math.floor(dropped * len(losses)))
    return losses.topk(kept, largest=False).values


def squared_errors(outputs: Float[Tensor, "examples ..."], targets: Targets) -> Losses:
    """The mean over an example's values of their squared differences."""
    squares = (outputs.reshape(targets.shape) - targets).square()
    return squares if squares.dim() == 1 else squares.mean(1)


def build_loss(config: TrainConfig) -> LossFunction:
    """The loss that ``config`` names: ``(outputs, targets)`` to the losses whose mean is trained on.

    Raises:
        InputError: If it is the user's own, and there is no such function.
    """
    if config.has_own_loss:
        return function_named(config.loss, "loss")
    functions: dict[str, LossFunction] = {
        "ce": cross_entropy,
        "ce_offset": lambda o, y: offset_logistic(o, y, offset=config.loss_offset),
        "gce": lambda o, y: generalized_cross_entropy(o, y, q=config.gce_q),
        "smallest_k_ce": lambda o, y: smallest_cross_entropies(o, y, dropped=config.frac_rm_per_batch),
        "mse": squared_errors,
    }
    return functions[config.loss]
