"""What an ascent is, and what it is told.

An ascent is asked once per ascent step for the perturbation after that step, so a new one is one
callable object. Optional protocols say that it can do without a gradient (one pass a step), that its
gradient is taken elsewhere, and that it remembers gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowland.sam.asked import holds
from lowland.sam.noise import Noise
from lowland.sam.vectors import Number, One, Vector, at_most, over


@dataclass(frozen=True)
class Weights:
    """What a perturbation may depend on before any gradient is known.

    Attributes:
        w: The weights to perturb, at their unperturbed values: those with a radius above zero.
        rho: Radius.
        names: Their names; ``None`` if they were given without.
        noise: Randomness, for ascents whose ``random`` is true.
    """

    w: Sequence[Tensor]
    rho: Number
    names: Sequence[str] | None = None
    noise: Noise | None = None


@dataclass(frozen=True)
class AscentStep:
    """What one step of the inner maximization may depend on.

    Attributes:
        w: The weights to perturb, at their unperturbed values: those with a radius above zero.
        e: The perturbation so far; ``None`` before the first step.
        g: Gradient of the group's loss at ``w + e``, finite, in float32 or better; not to be written to. A
            list of tensors will do.
        norm: The l2 norm of ``g``.
        size: Size of the step: ``rho`` times the user's ``step_size``.
        rho: Radius of the ball that the perturbation is to stay in.
        names: Names of the weights; ``None`` if they were given without.
        noise: Randomness, for ascents whose ``random`` is true.

    Example:
        >>> import torch
        >>> from lowland.sam import AscentStep, sam_gradient
        >>> class Signs:
        ...     def __call__(self, step: AscentStep):
        ...         return [step.rho * g.sign() for g in step.g]  # the highest point of the l-infinity ball
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, -4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> sam_gradient(loss, w, (), rho=0.5, ascent=Signs()).gradients
        [tensor([3.5000]), tensor([-4.5000])]
    """

    w: Sequence[Tensor]
    e: Any
    g: Any
    norm: Any
    size: Number
    rho: Number
    names: Sequence[str] | None = None
    noise: Noise | None = None

    def __post_init__(self) -> None:
        for name in ("e", "g"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Vector):
                object.__setattr__(self, name, One(value))

    @property
    def over_norm(self) -> Number:
        """What makes ``g`` a vector of length ``size``; 0 where it is so small that this overflows."""
        return over(self.size, self.norm, self.g.largest_factor)

    @property
    def stays_inside(self) -> bool:
        """Whether a step of length ``size`` cannot leave the ball."""
        return self.e is None and holds(self.size <= self.rho)

    def along(self, factor: Number) -> Vector:
        """The perturbation moved by ``factor * g``."""
        step: Vector = self.g.scaled(factor)
        return step if self.e is None else self.e.plus(step)

    def within(self, e: Vector) -> Vector:
        """The nearest point to ``e`` in the ball."""
        return e.scaled(at_most(1.0, over(self.rho, e.norm(), math.inf, at_zero=1.0)))


def generator(step: Weights | AscentStep, device: torch.device) -> torch.Generator:
    """The random numbers of an ascent.

    Raises:
        ValueError: If there are none, because the ascent's ``random`` is not true.
    """
    if step.noise is None:
        raise ValueError("an ascent that draws random numbers must set random = True.")
    return step.noise.generator(device)


@runtime_checkable
class Ascent(Protocol):
    """One step of the inner maximization.

    An ascent whose perturbation of a weight depends on that weight's own gradient and on norms over all
    of them may set ``by_row = True``: of a sparse gradient it is then shown the rows that are there, in
    place of the whole tensor. One that does nothing with ``e`` and ``g`` but what every
    :class:`~lowland.sam.vectors.Vector` can may set ``of_many = True`` beside its ``__call__``: it is then
    asked once for all groups that run at once, whose norms are tensors of shape ``(groups,)``. One that draws
    from ``noise`` sets ``random = True``, one that makes no sense for several steps ``one_step = True``. One
    that never looks at ``w`` sets ``reads_weights = False``: of a model that is sharded, whose weights are
    nowhere whole, no other climbs.
    """

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """The perturbation after ``step``, or ``None`` if there is nowhere to climb: it stays what it was.

        Args:
            step: What it may depend on.
        """
        ...


@runtime_checkable
class BlindAscent(Protocol):
    """A perturbation that needs no gradient, so that a step costs one pass."""

    def without_gradient(self, weights: Weights) -> Sequence[Tensor] | None:
        """The perturbation, or ``None`` if there is none.

        Args:
            weights: What it may depend on: the weights, the radius and randomness.
        """
        ...


@runtime_checkable
class StartingAscent(Ascent, Protocol):
    """An ascent whose gradient is not taken at ``w``; it makes one step."""

    def start(self, weights: Weights) -> Sequence[Tensor]:
        """Where it is taken, less ``w``.

        Args:
            weights: What that may depend on: the weights, the radius and randomness.
        """
        ...


@runtime_checkable
class RememberingAscent(Ascent, Protocol):
    """An ascent that depends on gradients of earlier steps."""

    def remember(self, gradients: Sequence[Tensor]) -> None:
        """Takes note of the gradient that a step's climbs started from, averaged over its groups.

        Args:
            gradients: That gradient, one tensor per perturbed parameter.
        """
        ...
