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

    Args:
        gradient: The gradient at :math:`w`, one tensor per parameter; norms are taken over all together.
        perturbed: That at :math:`w + e`, likewise.

    Returns:
        The gradient to train with.

    Example:
        >>> import torch
        >>> from lowland.sam import magnitude_only
        >>> at_w, at_w_plus_e = ([torch.tensor([a]), torch.tensor([b])] for a, b in ((3.0, 4.0), (0.0, 10.0)))
        >>> magnitude_only(at_w, at_w_plus_e)  # norms 5 and 10
        [tensor([6.]), tensor([8.])]
    """
    return _at_length_of(gradient, perturbed)


def stable(gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
    r"""Direction of the gradient at :math:`w + e`, norm of that at :math:`w` (SSAM; Tan et al., 2025).

    .. math::
        \nabla L(w + e)\, \frac{\|\nabla L(w)\|_2}{\|\nabla L(w + e)\|_2}

    A zero gradient at :math:`w + e` stays zero.

    Args:
        gradient: The gradient at :math:`w`, one tensor per parameter; norms are taken over all together.
        perturbed: That at :math:`w + e`, likewise.

    Returns:
        The gradient to train with.

    Example:
        >>> import torch
        >>> from lowland.sam import stable
        >>> at_w, at_w_plus_e = ([torch.tensor([a]), torch.tensor([b])] for a, b in ((3.0, 4.0), (0.0, 10.0)))
        >>> stable(at_w, at_w_plus_e)  # norms 5 and 10
        [tensor([0.]), tensor([5.])]
    """
    return _at_length_of(perturbed, gradient)


def _at_length_of(direction: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    norm = l2_norm(direction)
    norm, length = torch.where(norm > 0, norm, torch.ones_like(norm)), l2_norm(other)
    return [g / norm.to(g) * length.to(g) for g in direction]  # the ratio of both may overflow
