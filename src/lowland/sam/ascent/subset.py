"""Part of another ascent's perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lowland.sam.ascent.ball import L2
from lowland.sam.ascent.step import Ascent, AscentStep, BlindAscent, RememberingAscent, generator


@dataclass(frozen=True)
class RandomSubset:
    r"""A random part of a perturbation, scaled up (ESAM's stochastic weight perturbation; Du et al., 2022).

    .. math::
        e = \frac{1}{\beta}\, b \odot \hat e, \qquad b_i \sim \mathrm{Bernoulli}(\beta),

    whose mean is the other ascent's :math:`\hat e`; drawn anew for every group. It makes one step.

    Args:
        beta: Share of the weights that move, above 0 and at most 1.
        ascent: The other ascent; :class:`L2` by default.

    Raises:
        ValueError: If ``beta`` is out of range.
        TypeError: If ``ascent`` needs no gradient or remembers gradients.

    Example:
        >>> import torch
        >>> from lowland.sam import RandomSubset, sam_gradient
        >>> w = [torch.full((50,), 2.0, requires_grad=True) for _ in range(2)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # the gradient is w, and L2's e is rho / 10
        >>> found = sam_gradient(loss, w, (), rho=5.0, ascent=RandomSubset(beta=0.5))
        >>> sorted({round(x, 4) for g in found.gradients for x in g.tolist()})
        [2.0, 3.0]
    """

    beta: float
    ascent: Ascent = field(default_factory=L2)

    random: ClassVar[bool] = True
    one_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.beta <= 1.0:
            raise ValueError(f"beta must be above 0 and at most 1, got {self.beta}.")
        if isinstance(self.ascent, RememberingAscent):
            name = type(self.ascent).__name__
            raise TypeError(
                f"RandomSubset must stand inside {name}, {name}(ascent=RandomSubset(...)), got it outside."
            )
        if isinstance(self.ascent, BlindAscent):
            raise TypeError(
                f"RandomSubset needs an ascent along the gradient, got {type(self.ascent).__name__}."
            )

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """The other ascent's step, masked."""
        e = self.ascent(step)
        return None if e is None else [self._masked(step, t) for t in e]

    def _masked(self, step: AscentStep, e: Tensor) -> Tensor:
        kept = torch.rand(e.shape, device=e.device, generator=generator(step, e.device)) < self.beta
        return torch.where(kept, e / self.beta, torch.zeros_like(e))
