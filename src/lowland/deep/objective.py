"""What is trained: the loss of a group of examples with its regularizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lowland.deep.config import TrainConfig
from lowland.deep.losses import as_logits, build_loss, cross_entropy

Images = Float[Tensor, "examples channels height width"]
Labels = Int[Tensor, " examples"]
Aux = dict[str, Tensor]
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective:
    """``objective(images, labels)``: the value to train on, and each example's loss and error as aux.

    The term ``l2_reg`` is not here: it is part of :class:`lowland.SAM`, which adds its gradient exactly.

    Args:
        config: Loss, regularizers and precision.
        model: The network.
    """

    def __init__(self, config: TrainConfig, model: nn.Module) -> None:
        self._config = config
        self._model = model
        self._loss = build_loss(config)
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._needs_input_gradient = config.input_grad_reg_lambda > 0 or config.jac_reg_lambda > 0

    def __call__(self, images: Images, labels: Labels) -> tuple[Float[Tensor, ""], Aux]:
        """Mean objective of the examples, a scalar, and their losses and errors, detached."""
        if self._needs_input_gradient:
            images = images.detach().requires_grad_()
        with autocast(self._config.half_prec, images.device):
            outputs = self._model(images)
        outputs = outputs.float() if outputs.dtype in AUTOCAST_TYPES.values() else outputs
        value = self._loss(outputs, labels).mean()
        aux = {"loss": cross_entropy(outputs, labels).detach(), "wrong": is_wrong(outputs, labels)}
        return self._regularized(value, outputs, images), aux

    def _regularized(self, loss: Tensor, outputs: Tensor, images: Tensor) -> Tensor:
        config = self._config
        value = loss
        if config.l1_reg > 0:
            value = value + config.l1_reg * torch.stack([p.abs().sum() for p in self._params]).sum()
        if config.weight_grad_reg_lambda > 0:
            value = value + config.weight_grad_reg_lambda * _squared_gradient(loss, self._params)
        if config.input_grad_reg_lambda > 0:
            value = value + config.input_grad_reg_lambda * _squared_gradient(loss, [images])
        if config.jac_reg_lambda > 0:
            columns = as_logits(outputs).mean(0)
            terms = [_squared_gradient(c, [images]) for c in columns if c.requires_grad]
            value = value + config.jac_reg_lambda * torch.stack(terms).sum()
        return value


def is_wrong(outputs: Float[Tensor, "examples outputs"], labels: Labels) -> Tensor:
    """Whether each example is misclassified."""
    return as_logits(outputs.detach()).argmax(1) != labels


def autocast(half_prec: str, device: torch.device) -> torch.autocast:
    """The autocast context that ``half_prec`` names; a disabled one for ``no``."""
    enabled = half_prec in AUTOCAST_TYPES
    return torch.autocast(device.type, AUTOCAST_TYPES.get(half_prec, torch.bfloat16), enabled=enabled)


def _squared_gradient(value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    return torch.stack([g.square().sum() for g in gradients if g is not None]).sum()
