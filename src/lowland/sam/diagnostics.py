"""What the climbs of a call did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lowland.sam.average import Gradients
from lowland.sam.group import GroupPasses
from lowland.sam.norm import l2_norm
from lowland.sam.precision import working


@dataclass(frozen=True)
class Diagnostics:
    """What each group's climb did; every field has one entry per group, in order.

    Attributes:
        group_size: Number of examples in the group, or its ``weight``.
        loss: The group's objective at the unperturbed weights (with ``l2``, including it).
        perturbed_loss: The same at the perturbed weights; equal to ``loss`` where nothing was climbed.
        gradient_norm: The l2 norm of the gradient that the climb started from; NaN for an ascent that
            needs none.
        perturbation_norm: The l2 norm of the perturbation, as intended.
        realised_norm: The l2 norm of what it was after rounding to the weights' type.
        moved: Share of the weights with a radius that differed from their unperturbed values.
        cosine: Cosine between the gradients at the unperturbed and at the perturbed weights; NaN if one
            is zero or not finite.
        climbed: Whether there was anywhere to climb; false for a zero or a non-finite gradient.
    """

    group_size: Float[Tensor, " groups"]
    loss: Float[Tensor, " groups"]
    perturbed_loss: Float[Tensor, " groups"]
    gradient_norm: Float[Tensor, " groups"]
    perturbation_norm: Float[Tensor, " groups"]
    realised_norm: Float[Tensor, " groups"]
    moved: Float[Tensor, " groups"]
    cosine: Float[Tensor, " groups"]
    climbed: Bool[Tensor, " groups"]

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        """Rise of the loss in the climb, averaged over examples: the one-step m-sharpness."""
        weight = self.group_size / self.group_size.sum()
        return (weight * (self.perturbed_loss - self.loss)).sum()

    @property
    def skipped(self) -> int:
        """Number of groups that were not climbed."""
        return int((~self.climbed).sum().item())


@dataclass(frozen=True)
class GroupDiagnostics:
    """The row of one group."""

    group_size: float
    loss: Tensor
    perturbed_loss: Tensor
    gradient_norm: float
    perturbation_norm: float
    realised_norm: float
    moved: float
    cosine: float
    climbed: bool

    @classmethod
    @torch.no_grad()
    def of(cls, size: float, group: GroupPasses) -> GroupDiagnostics:
        """The row of ``group``, whose passes were measured."""
        realised, moved = group.perturbed.realised or (0.0, 0.0)
        climbed = group.climb.length > 0.0
        return cls(
            size,
            group.at_weights.loss,
            group.perturbed.loss if climbed else group.at_weights.loss,
            group.climb.gradient_norm,
            group.climb.length,
            realised,
            moved,
            _cosine(group.at_weights.gradients, group.perturbed.gradients),
            climbed,
        )


def together(rows: Sequence[GroupDiagnostics]) -> Diagnostics:
    """One column per field, in float32 or better."""
    loss = working(torch.stack([row.loss for row in rows]))

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device="cpu").to(loss)

    return Diagnostics(
        group_size=column([row.group_size for row in rows]),
        loss=loss,
        perturbed_loss=working(torch.stack([row.perturbed_loss for row in rows])),
        gradient_norm=column([row.gradient_norm for row in rows]),
        perturbation_norm=column([row.perturbation_norm for row in rows]),
        realised_norm=column([row.realised_norm for row in rows]),
        moved=column([row.moved for row in rows]),
        cosine=column([row.cosine for row in rows]),
        climbed=torch.tensor([row.climbed for row in rows], device=loss.device),
    )


def _cosine(at_weights: Gradients, perturbed: Gradients) -> float:
    """The inner product of both at length 1: products of small entries underflow."""
    both = [(a, b) for a, b in zip(at_weights, perturbed, strict=True) if a is not None and b is not None]
    s, t = _norm(at_weights), _norm(perturbed)
    if not (0.0 < s < math.inf and 0.0 < t < math.inf):
        return math.nan
    return sum((a.to_dense() / s * (b.to_dense() / t)).sum(dtype=torch.float64).item() for a, b in both)


def _norm(gradients: Gradients) -> float:
    present = [g for g in gradients if g is not None]
    return l2_norm(present).item() if present else 0.0
