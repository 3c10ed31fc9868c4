"""Steps in a ball that is measured in units of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lowland.sam.ascent.ball import L2
from lowland.sam.ascent.step import AscentStep
from lowland.sam.precision import working
from lowland.sam.vectors import Vector

Unit = Literal["element", "filter"]


@dataclass(frozen=True)
class Adaptive:
    r"""Ascent in the ball :math:`\|e / T\|_2 \le \rho` (ASAM; Kwon et al., 2021, eq. 8).

    .. math::
        e = \rho\, \frac{T^2 g}{\|T g\|_2}, \qquad T = |w| + \eta

    so that rescaling weights which cancel each other does not change the climb. Several steps are
    projected onto the same ball.

    Args:
        eta: :math:`\eta`, which lets weights at zero move.
        by: ``"element"``: :math:`T` is each weight's size. ``"filter"``: it is the l2 norm of the weights
            that lead to the same output (first dimension) where a tensor has two dimensions or more.
        scaled: Pattern of the names with a :math:`T`; elsewhere :math:`T = 1`. The official code scales
            what has ``weight`` in its name; ``"*"`` scales all, as davda54/sam does (there with
            ``eta=0``, and ρ four times as large).

    Raises:
        ValueError: If ``eta`` is negative or ``by`` is unknown; when climbing, if names are needed and
            the params were given without.

    Example:
        >>> import torch
        >>> from lowland.sam import Adaptive, sam_gradient
        >>> w = [torch.full((2,), 2.0, requires_grad=True) for _ in range(2)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # the gradient is w, and T g has norm 8
        >>> sam_gradient(loss, w, (), rho=1.0, ascent=Adaptive(eta=0.0, scaled="*")).gradients
        [tensor([3., 3.]), tensor([3., 3.])]
    """

    eta: float = 0.01
    by: Unit = "element"
    scaled: str = "*weight*"

    by_row: ClassVar[bool] = True
    of_many: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"eta must be non-negative, got {self.eta}.")
        if self.by not in get_args(Unit):
            raise ValueError(f"by must be one of {get_args(Unit)}, got {self.by!r}.")

    def __call__(self, step: AscentStep) -> Vector:
        """The step of :class:`L2` for ``T g`` and ``e / T``, times T."""
        units = self.scales(step.w, step.names)
        g = step.g.times(units)
        e = None if step.e is None else step.e.times([None if u is None else _inverse(u) for u in units])
        return L2()(replace(step, g=g, e=e, norm=g.norm())).times(units)

    @property
    def has_no_low_rank(self) -> bool:
        """Whether groups' perturbations must be formed where their gradients need not be."""
        return self.by == "element"

    def scales(self, weights: Sequence[Tensor], names: Sequence[str] | None) -> list[Tensor | None]:
        """:math:`T` of each of the weights.

        Args:
            weights: The weights.
            names: Their names; ``None`` if they have none.

        Returns:
            One tensor for each, of a shape that broadcasts to it; ``None`` for 1.

        Raises:
            ValueError: If names are needed and there are none.
        """
        if self.scaled == "*":
            return [self._scale(w) for w in weights]
        if names is None:
            raise ValueError(
                f"Adaptive(scaled={self.scaled!r}) needs names: params must be a module or named parameters, "
                'or scaled="*", got parameters without names.'
            )
        pairs = zip(weights, names, strict=True)
        return [self._scale(w) if fnmatchcase(name, self.scaled) else None for w, name in pairs]

    def _scale(self, w: Tensor) -> Tensor:
        w = working(w.detach())
        if self.by == "filter" and w.dim() >= 2:
            norms: Tensor = torch.linalg.vector_norm(w.flatten(1), dim=1)
            return norms.view(-1, *[1] * (w.dim() - 1)) + self.eta
        return w.abs() + self.eta


def _inverse(units: Tensor) -> Tensor:
    """``1 / units``, 0 where they are 0: nothing moves there."""
    return torch.where(units == 0, torch.zeros_like(units), 1.0 / units)
