"""What the climbs of a call did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lowland.sam.algorithm import Passes
from lowland.sam.looks.look import Look
from lowland.sam.precision import working
from lowland.sam.vectors import Number


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
        realised_norm: The l2 norm of what it was after rounding to the weights' type; of weights of half
            precision, which the batched engine does not move, what it was before.
        moved: Share of the weights with a radius that differed from their unperturbed values.
        cosine: Cosine between the gradients at the unperturbed and at the perturbed weights; NaN if one
            is zero or not finite.
        climbed: Whether there was anywhere to climb; false for a zero or a non-finite gradient.

    Example:
        >>> import torch
        >>> from lowland.sam import sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # the gradient is w, of norm 5
        >>> seen = sam_gradient(loss, w, (), rho=1.0, diagnostics=True).diagnostics
        >>> [round(x.item(), 4) for x in (seen.gradient_norm, seen.perturbation_norm, seen.sharpness)]
        [5.0, 1.0, 5.5]
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


def diagnosed(look: Look, found: Passes) -> Diagnostics:
    """What the climbs of the groups of ``look`` did, whose passes were measured."""
    before, after, climb = found.at_weights, found.perturbed, found.climb
    losses = working(before.losses.reshape(-1))
    assert before.gradient is not None
    assert after.gradient is not None
    climbed = _column(climb.length, losses) > 0.0
    norm = climb.gradient_norm
    norm = before.gradient.norm() / look.objective.scale if norm is None else norm
    realised, moved = after.realised or (0.0, 0.0)
    return Diagnostics(
        group_size=_column(look.masses, losses),
        loss=losses,
        perturbed_loss=torch.where(climbed, working(after.losses.reshape(-1)), losses),
        gradient_norm=_column(norm, losses),
        perturbation_norm=_column(climb.length, losses),
        realised_norm=_column(realised, losses),
        moved=_column(moved, losses),
        cosine=_column(before.gradient.cosine(after.gradient), losses),
        climbed=climbed,
    )


def together(rows: Sequence[Diagnostics], places: Sequence[int]) -> Diagnostics:
    """All groups in the order of their ``places``."""
    order = sorted(range(len(places)), key=places.__getitem__)
    names = [field.name for field in fields(Diagnostics)]
    return Diagnostics(**{name: torch.cat([getattr(row, name) for row in rows])[order] for name in names})


def _column(numbers: Number, like: Tensor) -> Tensor:
    """A number of each group in the type and place of ``like``."""
    numbers = (
        numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=torch.float64, device="cpu")
    )
    return numbers.to(like).expand(len(like))
