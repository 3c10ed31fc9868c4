"""What to return from the gradients at ``w`` and at ``w + e``.

A rule takes both, averaged over the groups, and returns the gradient to train with. No rule
(``combine=None``) is SAM: the gradient at ``w + e``.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lowland.sam.norm import l2_norm


@runtime_checkable
class Combine(Protocol):
    """A function of the two averaged gradients."""

    def __call__(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to train with, from those at ``w`` and at ``w + e``."""
        ...


def magnitude_only(gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
    r"""Direction of the gradient at :math:`w`, norm of the gradient at :math:`w + e`.

    .. math::
        \nabla L(w)\, \frac{\|\nabla L(w + e)\|_2}{\|\nabla L(w)\|_2}

    It asks whether SAM's effect is one on the step size only (the option ``only_sam_step_size`` of
    Andriushchenko & Flammarion's code). A zero gradient at :math:`w` stays zero.
    """
    norm = l2_norm(gradient)
    ratio = torch.where(norm > 0, l2_norm(perturbed) / norm, torch.zeros_like(norm))
    return [g * ratio.to(g.dtype) for g in gradient]
