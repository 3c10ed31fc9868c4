"""Where a group climbs, and how far.

An ascent is asked once per ascent step for the perturbation after that step, so a new one is one
callable object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lowland.sam.norm import l2_norm


@dataclass(frozen=True)
class AscentStep:
    """What one step of the inner maximization may depend on.

    Attributes:
        w: The weights, unperturbed.
        e: The perturbation so far; ``None`` before the first step.
        g: Gradient of the group's loss at ``w + e``, finite.
        norm: The l2 norm of ``g``.
        size: Size of the step: ``rho`` times the user's ``step_size``.
        rho: Radius of the ball that the perturbation is to stay in.
    """

    w: Sequence[Tensor]
    e: Sequence[Tensor] | None
    g: Sequence[Tensor]
    norm: float
    size: float
    rho: float

    def along(self, factor: float) -> list[Tensor]:
        """The perturbation moved by ``factor * g``."""
        step = _scaled(self.g, factor)
        return step if self.e is None else list(torch._foreach_add(step, list(self.e)))


@runtime_checkable
class Ascent(Protocol):
    """One step of the inner maximization."""

    def __call__(self, step: AscentStep) -> list[Tensor] | None:
        """The perturbation after ``step``, or ``None`` if there is nowhere to climb."""
        ...


@dataclass(frozen=True)
class L2:
    r"""Normalized ascent in the l2 ball, :math:`e = \rho\, g / \|g\|_2` (Foret et al., 2021, eq. 2).

    A gradient that is zero, or so small that :math:`\rho / \|g\|_2` overflows, climbs nowhere.
    """

    def __call__(self, step: AscentStep) -> list[Tensor] | None:
        """A step of l2 length ``step.size`` along the gradient, then back into the ball."""
        if step.norm == 0.0 or step.size / step.norm > torch.finfo(step.g[0].dtype).max:
            return None if step.e is None else list(step.e)
        moved = step.along(step.size / step.norm)
        inside = step.e is None and step.size <= step.rho
        return moved if inside else _within_ball(moved, step.rho)


@dataclass(frozen=True)
class Unnormalized:
    r"""Unnormalized ascent, :math:`e = \rho\, g` (USAM; Andriushchenko & Flammarion, 2022, eq. 4).

    It is not clipped: the length of the perturbation is :math:`\rho \|g\|_2`, whatever that is. Several
    steps add up, :math:`e_{k+1} = e_k + \rho s\, g(w + e_k)` for a step size :math:`s`.
    """

    def __call__(self, step: AscentStep) -> list[Tensor] | None:
        """A step ``step.size * step.g``."""
        return None if step.norm == 0.0 and step.e is None else step.along(step.size)


@dataclass(frozen=True)
class ClippedUnnormalized:
    r"""Unnormalized ascent clipped to the ball, :math:`e = \rho\, g \min(1, 1/\|g\|_2)`.

    What the original code of Andriushchenko & Flammarion (2022) does without gradient normalization:
    it projects onto the ball of radius :math:`\rho` after each step.
    """

    def __call__(self, step: AscentStep) -> list[Tensor] | None:
        """A step ``step.size * step.g``, then back into the ball."""
        moved = Unnormalized()(step)
        return None if moved is None else _within_ball(moved, step.rho)


def _scaled(tensors: Sequence[Tensor], factor: float) -> list[Tensor]:
    return list(torch._foreach_mul(list(tensors), factor))


def _within_ball(e: list[Tensor], radius: float) -> list[Tensor]:
    norm = l2_norm(e).item()
    return e if norm <= radius else _scaled(e, radius / norm)
