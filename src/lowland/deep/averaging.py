"""Averaged weights, and batch-norm statistics that fit them."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowland.deep.network import outputs_of


class WeightAverage:
    """Running average of a network's weights, as a network of its own.

    Args:
        model: The network that is trained.
        tau: Share of itself that the average keeps at each update.
    """

    def __init__(self, model: nn.Module, tau: float) -> None:
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        self.tau = tau

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        r"""One step :math:`\bar w \leftarrow \tau \bar w + (1 - \tau) w`."""
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - self.tau)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether ``model`` has batch norms with running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Sequence[Tensor]]) -> None:
    """Replaces the running statistics by the mean of those of ``batches``, in one pass.

    A batch is what the network is given: inputs, and perhaps a mask. Everything else is in evaluation mode,
    as when the statistics are used: dropout draws nothing.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    try:
        with mode(model, training=False):
            for norm in norms:
                norm.train()
            for arguments in batches:
                outputs_of(model, *arguments)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the block; each module's own mode again after it."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def set_training_mode(model: nn.Module, *, freeze_batch_norm: bool) -> None:
    """Training mode, except for batch norms that are to keep and use their running statistics."""
    model.train()
    if freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
