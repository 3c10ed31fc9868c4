"""One of the two gradients at the length of the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowland.sam.norm import l2_norm


def magnitude_only(gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
    r"""Direction of the gradient at :math:`w`, norm of the gradient at :math:`w + e`.

    .. math::
        \nabla L(w)\, \frac{\|\nabla L(w + e)\|_2}{\|\nabla L(w)\|_2}

    It asks whether SAM's effect is one on the step size only (the option ``only_sam_step_size`` of
    Andriushchenko & Flammarion's code). A zero gradient at :math:`w` stays zero.
    """
    return _at_length_of(gradient, perturbed)


def stable(gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
    r"""Direction of the gradient at :math:`w + e`, norm of that at :math:`w` (SSAM; Tan et al., 2025).

    .. math::
        \nabla L(w + e)\, \frac{\|\nabla L(w)\|_2}{\|\nabla L(w + e)\|_2}

    A zero gradient at :math:`w + e` stays zero.
    """
    return _at_length_of(perturbed, gradient)


def _at_length_of(direction: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    norm = l2_norm(direction)
    norm, length = torch.where(norm > 0, norm, torch.ones_like(norm)), l2_norm(other)
    return [g / norm.to(g) * length.to(g) for g in direction]  # the ratio of both may overflow
