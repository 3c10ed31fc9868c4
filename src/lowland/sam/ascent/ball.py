"""Steps along the gradient, and the ball they stay in."""

from dataclasses import dataclass
from typing import ClassVar

from lowland.sam.ascent.step import AscentStep
from lowland.sam.vectors import Vector, where_positive


@dataclass(frozen=True)
class L2:
    r"""Normalized ascent in the l2 ball, :math:`e = \rho\, g / \|g\|_2` (Foret et al., 2021, eq. 2).

    A gradient that is zero, or so small that :math:`\rho / \|g\|_2` overflows, climbs nowhere.

    Example:
        >>> import torch
        >>> from lowland.sam import L2, sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # the gradient is w, of norm 5
        >>> found = sam_gradient(loss, w, (), rho=1.0, ascent=L2())
        >>> [round(g.item(), 4) for g in found.gradients]
        [3.6, 4.8]
    """

    by_row: ClassVar[bool] = True
    of_many: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = False

    def __call__(self, step: AscentStep) -> Vector:
        """A step of l2 length ``step.size`` along the gradient, then back into the ball."""
        moved = step.along(step.over_norm)
        return moved if step.stays_inside else step.within(moved)


@dataclass(frozen=True)
class Unnormalized:
    r"""Unnormalized ascent, :math:`e = \rho\, g` (USAM; Andriushchenko & Flammarion, 2022, eq. 4).

    It is not clipped: the length of the perturbation is :math:`\rho \|g\|_2`, whatever that is. Several
    steps add up, :math:`e_{k+1} = e_k + \rho s\, g(w + e_k)` for a step size :math:`s`.

    Example:
        >>> import torch
        >>> from lowland.sam import Unnormalized, sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> found = sam_gradient(loss, w, (), rho=0.1, ascent=Unnormalized())
        >>> [round(g.item(), 4) for g in found.gradients]
        [3.3, 4.4]
    """

    by_row: ClassVar[bool] = True
    of_many: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = False

    def __call__(self, step: AscentStep) -> Vector:
        """A step ``step.size * step.g``."""
        return step.along(step.size)


@dataclass(frozen=True)
class ClippedUnnormalized:
    r"""Unnormalized ascent clipped to the ball, :math:`e = \rho\, g \min(1, 1/\|g\|_2)`.

    What the original code of Andriushchenko & Flammarion (2022) does without gradient normalization:
    it projects onto the ball of radius :math:`\rho` after each step.

    Example:
        >>> import torch
        >>> from lowland.sam import ClippedUnnormalized, sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # the gradient is w, of norm 5, and clipped
        >>> found = sam_gradient(loss, w, (), rho=0.1, ascent=ClippedUnnormalized())
        >>> [round(g.item(), 4) for g in found.gradients]
        [3.06, 4.08]
    """

    by_row: ClassVar[bool] = True
    of_many: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = False

    def __call__(self, step: AscentStep) -> Vector:
        """A step ``step.size * step.g``, then back into the ball."""
        return step.within(step.along(step.size))


@dataclass
class Unified:
    r"""Between unnormalized and normalized ascent (Oikonomou & Loizou, 2025, "Unified SAM").

    .. math::
        e = \rho \Bigl(1 - \lambda + \frac{\lambda}{\|g\|_2}\Bigr) g

    Args:
        lam: :math:`\lambda`: 0 is USAM, 1 is SAM. May be assigned at any time, to follow a schedule.

    Raises:
        ValueError: If ``lam`` is outside [0, 1].

    Example:
        >>> import torch
        >>> from lowland.sam import Unified, sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # the gradient is w, of norm 5
        >>> found = sam_gradient(loss, w, (), rho=1.0, ascent=Unified(lam=0.5))
        >>> [round(g.item(), 4) for g in found.gradients]
        [4.8, 6.4]
    """

    lam: float = 0.5

    by_row: ClassVar[bool] = True
    of_many: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"lam must be between 0 and 1, got {self.lam}.")

    def __call__(self, step: AscentStep) -> Vector:
        """A step of ``step.size * (1 - lam + lam / ||g||)`` along the gradient; several add up."""
        if self.lam == 0.0:
            return step.along(step.size)
        normalized = step.over_norm
        factor = step.size * (1.0 - self.lam) + self.lam * normalized
        return step.along(where_positive(normalized, factor))
