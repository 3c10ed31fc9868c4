"""The loss, its parameters, and the policy for everything else that it touches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lowland.sam.batch import detach
from lowland.sam.before import devices_of
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.examples import Part
from lowland.sam.leaves import OtherLeaves
from lowland.sam.precision import HALF
from lowland.sam.randomness import RandomState
from lowland.sam.touched import require_touched
from lowland.sam.workspace import Workspace

Loss = Callable[..., Any]
Weight = Callable[..., Any]
Reduction = Literal["mean", "sum"]
"""What a loss does with the losses of its examples."""


@dataclass(frozen=True)
class Objective:
    """A loss as a function of its parameters, under one policy for buffers and randomness.

    Attributes:
        loss: The loss of the examples it is given.
        params: The parameters.
        buffers: What its modules hold besides.
        bn_stats: Which passes move that.
        scale: Factor on the gradients that are returned; a tensor of one element while a step is recorded.
        weight: Weight of a part in means, in place of its number of examples.
        reduction: Whether a scalar is the mean over the examples, or their sum, which is then divided.
        workspace: Where weights are copied to while they are perturbed.
        measure: Whether passes say how far the weights really moved.
        cuts: Whether m cuts the batch, so that a loss must touch its arguments.
        others: Takes note of what else the loss depends on.
        names_too: Tensors by which the loss's modules know the parameters, where these are others.
    """

    loss: Loss
    params: list[Tensor]
    buffers: Buffers
    bn_stats: BatchNormStats = "frozen"
    scale: float | Tensor = 1.0
    weight: Weight | None = None
    reduction: Reduction = "mean"
    workspace: Workspace = field(default_factory=Workspace)
    measure: bool = False
    cuts: bool = False
    others: OtherLeaves | None = None
    names_too: Sequence[Tensor] = ()

    @cached_property
    def devices(self) -> list[torch.device]:
        """Devices of the parameters."""
        return devices_of(self.params)

    @cached_property
    def in_half(self) -> bool:
        """Whether some parameters have fewer digits than float32."""
        return any(p.dtype in HALF for p in self.params)

    def scaled(self, value: Tensor) -> Tensor:
        """``value`` times the scale."""
        if isinstance(self.scale, Tensor):
            return value * self.scale.to(value)
        return value if self.scale == 1.0 else value * self.scale

    @property
    def is_scaled(self) -> bool:
        """Whether the scale is not 1; while a step is recorded it is not known."""
        return isinstance(self.scale, Tensor) or self.scale != 1.0

    def mass(self, part: Part, examples: int | None) -> float:
        """Weight of ``part`` in means: its number of examples, or what the user's ``weight`` says."""
        if self.weight is None:
            return 1.0 if examples is None else float(examples)
        mass = float(self.weight(*part))
        if not 0.0 <= mass < float("inf"):
            raise ValueError(f"weight must return a non-negative, finite number, got {mass}.")
        return mass

    def checked(self, returned: Any, examples: int | None, mass: float) -> tuple[Tensor, Any]:
        """Value and aux from what the loss returned; the mean of one value per example."""
        value, aux = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(value, Tensor):
            raise TypeError(f"loss must return a tensor or (tensor, aux), got {type(value).__name__}.")
        if value.dim() == 0:
            if self.reduction == "sum":
                self._require_number(examples)
                value = value / mass
            return value, None if aux is None else detach(aux)
        if value.dim() > 1 or examples not in (None, len(value)):
            raise ValueError(
                f"loss must return a scalar or one value per example, shape ({examples or 'examples'},), "
                f"got shape {tuple(value.shape)}."
            )
        return value.mean(), None if aux is None else detach(aux)

    def require_gradient(self, value: Tensor) -> None:
        """Refuses a value that no gradient goes through."""
        if not value.requires_grad:
            raise ValueError("loss must depend on the params, got a value that requires no gradient.")

    def touching(self, part: Part, *, first: bool) -> AbstractContextManager[object]:
        """A block in which the loss must touch ``part``, if m cuts the batch."""
        return require_touched(part, self.loss, self.asked) if first and self.cuts else nullcontext()

    def asked(self, *part: Any) -> Any:
        """The loss, run once more: generators and buffers are as if it had not."""
        draws = RandomState.capture(self.devices)
        with self.buffers.kept():
            returned = self.loss(*part)
        draws.restore()
        return returned

    def moves_buffers(self, first: bool) -> bool:
        """Whether a pass moves running statistics, if it is the ``first`` over its examples or not."""
        return self.bn_stats == "both" or (self.bn_stats == "first" and first)

    def buffer_policy(self, first: bool) -> AbstractContextManager[object]:
        """A block after which what a pass did to buffers stays, or does not."""
        return nullcontext() if self.moves_buffers(first) else self.buffers.kept()

    def _require_number(self, examples: int | None) -> None:
        """Refuses a sum over examples whose number nobody knows."""
        if examples is None and self.weight is None:
            raise ValueError(
                "reduction='sum' must be given a batch whose tensors have one row per example, or weight=, "
                "got neither."
            )
