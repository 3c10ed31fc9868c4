"""Steps along the gradient, and the ball they stay in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowland.sam.ascent.step import AscentStep
from lowland.sam.norm import l2_norm
from lowland.sam.scaled import Scaled


@dataclass(frozen=True)
class L2:
    r"""Normalized ascent in the l2 ball, :math:`e = \rho\, g / \|g\|_2` (Foret et al., 2021, eq. 2).

    A gradient that is zero, or so small that :math:`\rho / \|g\|_2` overflows, climbs nowhere.
    """

    by_row: ClassVar[bool] = True

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """A step of l2 length ``step.size`` along the gradient, then back into the ball."""
        if vanishes(step.size, step.norm, step.g):
            return step.e
        moved = step.along(step.size / step.norm)
        inside = step.e is None and step.size <= step.rho
        return moved if inside else _within_ball(moved, step.rho)


@dataclass(frozen=True)
class Unnormalized:
    r"""Unnormalized ascent, :math:`e = \rho\, g` (USAM; Andriushchenko & Flammarion, 2022, eq. 4).

    It is not clipped: the length of the perturbation is :math:`\rho \|g\|_2`, whatever that is. Several
    steps add up, :math:`e_{k+1} = e_k + \rho s\, g(w + e_k)` for a step size :math:`s`.
    """

    by_row: ClassVar[bool] = True

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """A step ``step.size * step.g``."""
        return None if step.norm == 0.0 and step.e is None else step.along(step.size)


@dataclass(frozen=True)
class ClippedUnnormalized:
    r"""Unnormalized ascent clipped to the ball, :math:`e = \rho\, g \min(1, 1/\|g\|_2)`.

    What the original code of Andriushchenko & Flammarion (2022) does without gradient normalization:
    it projects onto the ball of radius :math:`\rho` after each step.
    """

    by_row: ClassVar[bool] = True

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """A step ``step.size * step.g``, then back into the ball."""
        moved = Unnormalized()(step)
        return None if moved is None else _within_ball(moved, step.rho)


@dataclass
class Unified:
    r"""Between unnormalized and normalized ascent (Oikonomou & Loizou, 2025, "Unified SAM").

    .. math::
        e = \rho \Bigl(1 - \lambda + \frac{\lambda}{\|g\|_2}\Bigr) g

    Args:
        lam: :math:`\lambda`: 0 is USAM, 1 is SAM. May be assigned at any time, to follow a schedule.

    Raises:
        ValueError: If ``lam`` is outside [0, 1].
    """

    lam: float = 0.5

    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"lam must be between 0 and 1, got {self.lam}.")

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """A step of ``step.size * (1 - lam + lam / ||g||)`` along the gradient; several add up."""
        if self.lam > 0 and vanishes(step.size, step.norm, step.g):
            return step.e
        return step.along(step.size * (1.0 - self.lam + (self.lam / step.norm if self.lam else 0.0)))


def vanishes(size: float, norm: float, g: Sequence[Tensor]) -> bool:
    """Whether ``g`` is zero, or its ``norm`` too small for a step of length ``size`` along it."""
    return norm == 0.0 or size / norm > largest_factor(g)


def largest_factor(tensors: Sequence[Tensor]) -> float:
    """The largest number that all ``tensors`` can be multiplied with, in float32 or better."""
    dtypes = {torch.promote_types(t.dtype, torch.float32) for t in tensors}
    return min((torch.finfo(dtype).max for dtype in dtypes), default=math.inf)


def _within_ball(e: Sequence[Tensor], radius: float) -> Sequence[Tensor]:
    if isinstance(e, Scaled):
        norm = abs(e.factor) * l2_norm(e.tensors).item()
        return e if norm <= radius else Scaled(e.tensors, e.factor * (radius / norm))
    norm = l2_norm(e).item()
    return e if norm <= radius else Scaled(e, radius / norm)
