"""How the highest point of a ball is looked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.errors import InputError, one_of
from lowland.sharpness.ball import Ball
from lowland.sharpness.nearby import Extras, Visit
from lowland.sharpness.vectors import Vector

Direction = Literal["normalized", "raw", "whole"]
Schedule = Literal["constant", "quarters"]
Factors = Float[Tensor, " trials"]


@dataclass(frozen=True)
class Best:
    """The highest point that each trial has seen.

    Attributes:
        losses: The loss there.
        extras: What the loss returned beside it.
        point: The perturbation, if ``keeps``.
        keeps: Whether points are remembered.
    """

    losses: Factors
    extras: Extras
    point: Vector = None
    keeps: bool = False

    def or_better(self, ball: Ball, losses: Factors, extras: Extras, point: Vector) -> Best:
        """The better of the two for each trial; what is not a number is never better."""
        better = losses > self.losses
        return Best(
            torch.where(better, losses, self.losses),
            {name: torch.where(better, extras[name], old) for name, old in self.extras.items()},
            ball.space.chosen(better, point, self.point) if self.keeps else None,
            self.keeps,
        )


@runtime_checkable
class Field(Protocol):
    """The loss around the weights, in the units of a ball."""

    @property
    def ball(self) -> Ball:
        """The ball."""

    def slope(self, z: Vector) -> tuple[Visit, Vector]:
        """What is at z, with its share, and the gradient with respect to z."""

    def value(self, z: Vector) -> Visit:
        """What is at z."""


@runtime_checkable
class Search(Protocol):
    """Looks for the highest point of a ball."""

    @property
    def steps(self) -> int:
        """Number of gradients that it takes."""

    @property
    def vectors(self) -> int:
        """Vectors over all weights that it takes the memory of, those of its ball's steps included."""

    def __call__(self, field: Field, start: Vector, best: Best) -> Best:
        """The highest point on the way from ``start``, or ``best`` if that is higher."""

    def settings(self) -> dict[str, Any]:
        """What decided the search, as plain values."""


@dataclass(frozen=True)
class ProjectedAscent:
    r"""Projected gradient ascent, :math:`z \leftarrow P(z + \eta_k \rho\, d)` along the gradient.

    Attributes:
        steps: Number of steps.
        step_size: :math:`\eta` in units of the radius.
        direction: what d is; ``normalized``: g over its norm (for l∞ its signs); ``raw``: g; ``whole``: g
            over the norm of the gradient of the parameters that stay as well, as in the original.
        schedule: ``quarters`` multiplies :math:`\eta` by 1, 1/2, 1/4, 1/8 in the four quarters of the steps,
            counted from 0; a step on a boundary is a long one, as in the original: 6, 5, 5 and 4 of 20, a
            path of 1.025 radii for :math:`\eta = 0.1`, which reaches the edge of the ball.

    Raises:
        InputError: If a number is out of its range, or a name is none.

    Example:
        >>> import torch
        >>> from lowland.sharpness import ProjectedAscent, worst_case
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w)  # from 5 ** 2 to 6 ** 2 one unit away
        >>> search = ProjectedAscent(steps=5, step_size=1.0)
        >>> round(worst_case(loss, w, (torch.ones(2),), rho=1.0, search=search).value, 4)
        11.0
    """

    steps: int = 20
    step_size: float = 0.1
    direction: Direction = "normalized"
    schedule: Schedule = "constant"
    vectors: ClassVar[int] = 6

    def __post_init__(self) -> None:
        require_steps(self.steps)
        if not 0.0 < self.step_size < math.inf:
            raise InputError(f"step_size must be positive and finite, got {self.step_size}.")
        one_of("direction", self.direction, get_args(Direction))
        one_of("schedule", self.schedule, get_args(Schedule))

    def __call__(self, field: Field, start: Vector, best: Best) -> Best:
        """Takes the steps.

        Args:
            field: The loss around the weights.
            start: Where to begin, in the ball.
            best: The highest point seen so far.

        Returns:
            The highest point that was seen, ``best`` if none is higher.
        """
        ball, z = field.ball, start
        for k in range(self.steps):
            seen, g = field.slope(z)
            best = best.or_better(ball, seen.losses, seen.extras, z)
            raw, reuse = self.direction == "raw", k > 0 and not best.keeps
            sizes = self._size(k) * ball.rho
            if self.direction == "whole":
                sizes = sizes * seen.share
            z = ball.climbed(z, sizes, g, raw=raw, reuse=reuse)
        last = field.value(z)
        return best.or_better(ball, last.losses, last.extras, z)

    def settings(self) -> dict[str, Any]:
        """What decided the search; if steps are not all the same, also the radii that they add up to."""
        settings = {
            "search": "projected ascent",
            "steps": self.steps,
            "step_size": self.step_size,
            "direction": self.direction,
            "schedule": self.schedule,
        }
        if self.schedule == "constant":
            return settings
        return settings | {"path": math.fsum(self._size(k) for k in range(self.steps))}

    def _size(self, k: int) -> float:
        halvings = max(0, 4 * k - 1) // self.steps if self.schedule == "quarters" else 0
        return self.step_size * 0.5**halvings


@dataclass(frozen=True)
class AutoPGD:
    r"""Auto-PGD (Croce & Hein, 2020, algorithm 1): momentum, and a step size that halves by itself.

    It begins at twice the radius. At checkpoints after 22 % of the steps and then ever closer, a trial
    halves it and goes back to its best point if fewer than 75 % of the steps since the last checkpoint went
    up, or if neither the step size nor the best loss changed since then.

    Attributes:
        steps: Number of steps.
        momentum: Share :math:`\alpha` of the new step.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> import torch
        >>> from lowland.sharpness import AutoPGD, worst_case
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w)  # from 5 ** 2 to 6 ** 2 one unit away
        >>> round(worst_case(loss, w, (torch.ones(2),), rho=1.0, search=AutoPGD(steps=5)).value, 4)
        11.0
    """

    steps: int = 20
    momentum: float = 0.75
    vectors: ClassVar[int] = 9

    def __post_init__(self) -> None:
        require_steps(self.steps)
        if not 0.0 < self.momentum <= 1.0:
            raise InputError(f"momentum must be in (0, 1], got {self.momentum}.")

    def __call__(self, field: Field, start: Vector, best: Best) -> Best:
        """Takes the steps.

        Args:
            field: The loss around the weights.
            start: Where to begin, in the ball.
            best: The highest point seen so far.

        Returns:
            The highest point that was seen, ``best`` if none is higher.
        """
        ball, chosen = field.ball, field.ball.space.chosen
        seen, g = field.slope(start)
        best = best.or_better(ball, seen.losses, seen.extras, start)
        own, slope, last = Best(seen.losses, {}, start, keeps=True), g, seen.losses
        size, since = 2.0 * ball.rho, _Since.begin(seen.losses)
        z, before = _ahead(ball, start, size, g), start
        for k in range(1, self.steps):
            seen, g = field.slope(z)
            best = best.or_better(ball, seen.losses, seen.extras, z)
            slope = chosen(seen.losses > own.losses, g, slope)
            own = own.or_better(ball, seen.losses, {}, z)
            since, last = since.after(seen.losses > last), seen.losses
            if k in self._checkpoints():
                stuck = since.is_stuck(own.losses, size)
                size, last = torch.where(stuck, 0.5 * size, size), torch.where(stuck, own.losses, last)
                z, g = chosen(stuck, own.point, z), chosen(stuck, slope, g)
                before = chosen(stuck, own.point, before)
                since = _Since.begin(own.losses, torch.where(stuck, torch.nan, size))
            z, before = self._onward(ball, z, before, _ahead(ball, z, size, g)), z
        end = field.value(z)
        return best.or_better(ball, end.losses, end.extras, z)

    def settings(self) -> dict[str, Any]:
        """What decided the search."""
        return {"search": "auto-PGD", "steps": self.steps, "momentum": self.momentum}

    def _onward(self, ball: Ball, z: Vector, before: Vector, ahead: Vector) -> Vector:
        a, one = self.momentum, torch.ones_like(ball.rho)
        terms = [(a * one, ahead), (2.0 * (1.0 - a) * one, z), ((a - 1.0) * one, before)]
        return ball.projected_(ball.space.combined(terms))

    def _checkpoints(self) -> set[int]:
        found, at, step = set(), 0.0, 0.22
        while at < 1.0:
            at, step = at + step, max(step - 0.03, 0.06)
            found.add(math.ceil(at * self.steps))
        return found


def _ahead(ball: Ball, z: Vector, size: Factors, g: Vector) -> Vector:
    return ball.climbed(z, size, g, raw=False, reuse=False)


@dataclass(frozen=True)
class _Since:
    """What happened to each trial since the last checkpoint.

    Attributes:
        best: The best loss then.
        size: The step size, NaN where it was just halved; ``None`` before the first checkpoint.
        steps: Number of steps since.
        ups: Those that went up.
    """

    best: Factors
    size: Factors | None
    steps: int
    ups: Factors

    @classmethod
    def begin(cls, best: Factors, size: Factors | None = None) -> _Since:
        return cls(best, size, 0, torch.zeros_like(best))

    def after(self, up: Tensor) -> _Since:
        return _Since(self.best, self.size, self.steps + 1, self.ups + up)

    def is_stuck(self, best: Factors, size: Factors) -> Tensor:
        too_few = self.ups < 0.75 * self.steps
        if self.size is None:
            return too_few
        return too_few | ((size == self.size) & (best == self.best))


def require_steps(steps: int) -> None:
    """Refuses numbers of steps that are none."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a positive whole number, got {steps!r}.")
