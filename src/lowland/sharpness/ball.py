"""The balls in which a worst case is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.vectors.factors import column
from lowland.sharpness.vectors import Space, Vector

Norm = Literal["l2", "linf"]
Factors = Float[Tensor, " trials"]


@runtime_checkable
class Ball(Protocol):
    """A ball around zero in a space of vectors."""

    @property
    def space(self) -> Space:
        """The vectors."""

    @property
    def rho(self) -> Factors:
        """Each trial's radius."""

    def climbed(self, z: Vector, sizes: Factors, g: Vector, *, raw: bool, reuse: bool) -> Vector:
        """``z`` moved along the gradient ``g``, and back to the nearest point of the ball.

        Args:
            z: Where each trial is.
            sizes: How far each moves: in this norm, or in units of ``g`` if ``raw``.
            g: The gradient; a trial whose gradient is zero or not finite stays.
            raw: Whether the gradient is taken as it is.
            reuse: Whether the memory of ``z`` may be taken.
        """

    def projected_(self, z: Vector) -> Vector:
        """The nearest point of the ball, in the memory of ``z``."""


@dataclass(frozen=True)
class L2Ball:
    r"""The ball :math:`\|z\|_2 \le \rho`."""

    space: Space
    rho: Factors

    def climbed(self, z: Vector, sizes: Factors, g: Vector, *, raw: bool, reuse: bool) -> Vector:
        """A step along g, or along g over its norm."""
        norms = self.space.norms(g)
        usable = norms.isfinite() & (norms > 0.0)
        if not bool(usable.all()):
            g = self.space.chosen(usable, g, None)
        factors = torch.where(usable, sizes if raw else sizes / norms, 0.0)
        if not raw and _beyond_float32(factors):  # as two factors, each of which is not
            g = self.space.combined([(torch.where(usable, 1.0 / norms, 0.0), g)])
            factors = torch.where(usable, sizes, 0.0)
        if not reuse:
            z = self.space.combined([(torch.ones_like(factors), z)])
        return self.projected_(self.space.added_(z, factors, g))

    def projected_(self, z: Vector) -> Vector:
        """``z``, shortened to the radius where it is longer."""
        norms = self.space.norms(z)
        far = norms > self.rho
        if not bool(far.any()):
            return z
        return self.space.scaled_(z, torch.where(far, self.rho / norms, 1.0))


@dataclass(frozen=True)
class LInfBall:
    r"""The ball :math:`\max_i |z_i| \le \rho`, of vectors that are formed."""

    space: Space
    rho: Factors

    def climbed(self, z: Vector, sizes: Factors, g: Vector, *, raw: bool, reuse: bool) -> Vector:
        """A step along g, or along its signs."""
        d = [torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in g]
        if not raw:
            d = [t.sign_() for t in d]
        if not reuse:
            z = self.space.combined([(torch.ones_like(sizes), z)])
        return self.projected_(self.space.added_(z, sizes, d))

    def projected_(self, z: Vector) -> Vector:
        """``z``, each entry cut off at the radius."""
        return [t.clamp_(-column(self.rho, t), column(self.rho, t)) for t in z]


def _beyond_float32(factors: Factors) -> bool:
    limits = torch.finfo(torch.float32)
    return bool(((factors > limits.max) | ((factors > 0.0) & (factors < limits.tiny))).any())
