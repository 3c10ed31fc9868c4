"""What is trained: the loss of a group of examples with its regularizers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowland.deep.config import TrainConfig
from lowland.deep.criterion import CROSS_ENTROPY, Criterion
from lowland.deep.data import to_float
from lowland.deep.losses import as_logits, build_loss
from lowland.deep.models import masks_of
from lowland.deep.network import outputs_of

Aux = dict[str, Tensor]
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective:
    """``objective(inputs, targets)``: the value to train on, and each example's loss and error as aux.

    Sequences come with their mask between the two. The term ``l2_reg`` is not here: it is part of
    :class:`lowland.SAM`, which adds its gradient exactly.

    Args:
        config: Loss, regularizers and precision.
        model: The network.
        criterion: What is said of its outputs beside.
        keyed: Whether the keys of the examples, of which dropout makes their masks, come last.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        criterion: Criterion = CROSS_ENTROPY,
        *,
        keyed: bool = False,
    ) -> None:
        self._keyed = keyed
        self._config = config
        self._model = model
        self._criterion = criterion
        self._loss = build_loss(config)
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._needs_input_gradient = config.input_grad_reg_lambda > 0 or config.jac_reg_lambda > 0

    def __call__(self, inputs: Tensor, *rest: Tensor) -> tuple[Float[Tensor, ""], Aux]:
        """Mean objective of the examples, a scalar, and their losses and errors, detached."""
        *mask, targets = rest[:-1] if self._keyed else rest
        if self._needs_input_gradient:
            inputs = inputs.detach().requires_grad_()
        with masks_of(rest[-1]) if self._keyed else nullcontext():
            outputs = in_float(self._config.half_prec, self._model, inputs, *mask)
        value = self._loss(outputs, targets).mean()
        judged = self._criterion
        aux = {"loss": judged.losses(outputs, targets).detach(), **judged.notes(outputs, targets)}
        return self._regularized(value, outputs, inputs), aux

    def _regularized(self, loss: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
        config = self._config
        value = loss
        if config.l1_reg > 0:
            value = value + config.l1_reg * torch.stack([p.abs().sum() for p in self._params]).sum()
        if config.weight_grad_reg_lambda > 0:
            value = value + config.weight_grad_reg_lambda * _squared_gradient(loss, self._params)
        if config.input_grad_reg_lambda > 0:
            value = value + config.input_grad_reg_lambda * _squared_gradient(loss, [inputs])
        if config.jac_reg_lambda > 0:
            columns = as_logits(outputs).mean(0)
            terms = [_squared_gradient(c, [inputs]) for c in columns if c.requires_grad]
            value = value + config.jac_reg_lambda * torch.stack(terms).sum()
        return value


def as_given(config: TrainConfig, argument: Tensor) -> Tensor:
    """An argument of the network as it is given it: pixels in [0, 1], numbers of the type of the weights."""
    argument = to_float(argument)
    return (
        argument.to(config.torch_dtype)
        if config.dtype != "float32" and argument.is_floating_point()
        else argument
    )


def autocast(half_prec: str, device: torch.device) -> torch.autocast:
    """The autocast context that ``half_prec`` names; a disabled one for ``no``."""
    enabled = half_prec in AUTOCAST_TYPES
    return torch.autocast(device.type, AUTOCAST_TYPES.get(half_prec, torch.bfloat16), enabled=enabled)


def in_float(half_prec: str, model: nn.Module, inputs: Tensor, *mask: Tensor) -> Any:
    """A network's outputs, computed in the precision that ``half_prec`` names, in float32 or better."""
    with autocast(half_prec, inputs.device):
        outputs = outputs_of(model, inputs, *mask)
    is_half = isinstance(outputs, Tensor) and outputs.dtype in AUTOCAST_TYPES.values()
    return outputs.float() if is_half else outputs


def _squared_gradient(value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    return torch.stack([g.square().sum() for g in gradients if g is not None]).sum()
