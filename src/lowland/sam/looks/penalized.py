"""The l2 term, around a look at the loss."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.looks.look import Drawn, Look, Pass
from lowland.sam.precision import working
from lowland.sam.vectors import Number, One, Vector


class Penalized:
    r"""A look at :math:`L_S + \frac\lambda2 \|w\|_2^2`.

    Args:
        look: The look at the loss.
        l2: :math:`\lambda`.
    """

    def __init__(self, look: Look, l2: float) -> None:
        self._look, self._l2 = look, l2
        self.objective = look.objective

    def slope(self, e: Any, *, first: bool = False) -> Pass:
        """The gradient of each group at ``w + e``."""
        return self._penalized(self._look.weights(e), self._look.slope(e, first=first))

    def mean(self, e: Any, *, first: bool = False) -> Pass:
        """The mean gradient of the groups at ``w + e``, which is used up."""
        return self._penalized(self._look.weights(e), self._look.mean(e, first=first))

    def value(self, e: Any, *, first: bool = False) -> Pass:
        """The objectives at ``w + e``, without a gradient."""
        return self._penalized(self._look.weights(e), self._look.value(e, first=first))

    def _penalized(self, w: Any, seen: Pass) -> Pass:
        factor = self._l2 * self.objective.scale
        gradient = None if seen.gradient is None else seen.gradient.plus(w.scaled(factor))
        mean: Any = None
        if isinstance(gradient, One) and seen.mean is seen.gradient:
            mean = gradient  # of a single group
        elif seen.mean is not None:
            mean = seen.mean.plus(self._look.summed(w).scaled(factor))
        of_weights = working(self.objective.params[0]).dtype
        losses = seen.losses.to(torch.promote_types(seen.losses.dtype, of_weights))
        penalty: Number = 0.5 * self._l2 * w.norm() ** 2
        penalty = penalty.to(losses) if isinstance(penalty, Tensor) else penalty
        return replace(seen, losses=losses + penalty, gradient=gradient, mean=mean)

    # The rest is that of the look at the loss.

    @property
    def masses(self) -> Float[Tensor, " groups"]:
        """Weights of the groups."""
        return self._look.masses

    def same_world(self) -> AbstractContextManager[object]:
        """The block of all passes."""
        return self._look.same_world()

    def shown(self, seen: Pass) -> Vector:
        """What an ascent is shown of a pass."""
        return self._look.shown(seen)

    def drawn(self, ask: Drawn) -> Vector | None:
        """A perturbation of each group that needs no gradient."""
        return self._look.drawn(ask)

    def everywhere(self, e: Any) -> Vector:
        """A perturbation of all parameters."""
        return self._look.everywhere(e)

    def weights(self, e: Any) -> Vector:
        """Each group's ``w + e``."""
        return self._look.weights(e)

    def summed(self, v: Any) -> One:
        """The weighted mean over the groups."""
        return self._look.summed(v)
