"""One forward and backward pass over a group, and what must be the same for every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batch import batch_size, detach
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.norm import l2_norm
from lowland.sam.perturb import perturbed
from lowland.sam.randomness import RandomState

Loss = Callable[..., Any]
Group = tuple[Any, ...]


@dataclass(frozen=True)
class Pass:
    """Objective, aux and gradient of one group at the weights as they stood.

    ``gradients`` are those of the scaled objective, zeros where a parameter was not ``used``; a pass that
    was asked for its value only has none.
    """

    loss: Tensor
    aux: Any
    gradients: list[Tensor]
    used: list[bool]


@dataclass(frozen=True)
class Passes:
    """The objective ``loss + l2/2 ||w||^2``, evaluated under one policy for buffers and randomness."""

    loss: Loss
    params: list[Tensor]
    l2: float
    scale: float
    bn_stats: BatchNormStats
    buffers: Buffers

    @property
    def devices(self) -> list[torch.device]:
        """Devices of the parameters."""
        return sorted({p.device for p in self.params}, key=str)

    def at_weights(self, group: Group) -> Pass:
        """The pass at the unperturbed weights."""
        return self._run(group, unperturbed=True)

    def value_at_weights(self, group: Group) -> Pass:
        """The same without a gradient."""
        with torch.no_grad(), self._buffer_policy(unperturbed=True):
            value, aux = self._evaluate(group)
            return Pass(self._with_penalty(value), aux, [], [])

    def elsewhere(self, group: Group, e: Sequence[Tensor] | None) -> Pass:
        """The pass at the weights perturbed by ``e``, or for the climb alone (``None``: not perturbed)."""
        if e is None:
            return self._run(group, unperturbed=False)
        with perturbed(self.params, e):
            return self._run(group, unperturbed=False)

    def unscaled(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the objective itself, from those of the scaled one."""
        return list(gradients) if self.scale == 1.0 else list(torch._foreach_div(list(gradients), self.scale))

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Buffers and generators are put back if the block raises."""
        generators = RandomState.capture(self.devices)
        with self.buffers.kept_on_error():
            try:
                yield
            except BaseException:
                generators.restore()
                raise

    def _run(self, group: Group, *, unperturbed: bool) -> Pass:
        with self._buffer_policy(unperturbed):
            value, aux = self._evaluate(group)
            if not value.requires_grad:
                raise ValueError("loss must depend on the params, got a value that requires no gradient.")
            scaled = value if self.scale == 1.0 else value * self.scale
            found = torch.autograd.grad(scaled, self.params, allow_unused=True)
        used = [g is not None or self.l2 > 0 for g in found]
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, found, strict=True)]
        with torch.no_grad():
            if self.l2 > 0:
                gradients = list(torch._foreach_add(gradients, self.params, alpha=self.l2 * self.scale))
            return Pass(self._with_penalty(value.detach()), aux, gradients, used)

    def _evaluate(self, group: Group) -> tuple[Tensor, Any]:
        returned = self.loss(*group)
        value, aux = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(value, Tensor):
            raise TypeError(f"loss must return a tensor or (tensor, aux), got {type(value).__name__}.")
        if value.dim() == 0:
            return value, detach(aux)
        examples = batch_size(group)
        if value.shape != (examples,):
            raise ValueError(
                f"loss must return a scalar or one value per example, shape ({examples},), "
                f"got shape {tuple(value.shape)}."
            )
        return value.mean(), detach(aux)

    def _with_penalty(self, value: Tensor) -> Tensor:
        return value + 0.5 * self.l2 * l2_norm(self.params).square() if self.l2 > 0 else value

    def _buffer_policy(self, unperturbed: bool) -> AbstractContextManager[None]:
        moves = self.bn_stats == "both" or (self.bn_stats == "first" and unperturbed)
        return nullcontext() if moves else self.buffers.kept()
