"""Radii that change in the course of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Schedule = Callable[[int], float]
"""A function of the number of steps done, which returns the radius."""


@dataclass(frozen=True)
class Window:
    """A radius within a window of training, and 0, that is ERM, outside.

    Args:
        rho: The radius, or another schedule.
        start: First step with SAM.
        stop: First step without it again; ``None`` for never.

    Raises:
        ValueError: If the window is empty.

    Example:
        >>> from lowland.sam import Window
        >>> rho = Window(0.1, start=2, stop=4)
        >>> [rho(step) for step in range(6)]
        [0.0, 0.0, 0.1, 0.1, 0.0, 0.0]
    """

    rho: float | Schedule
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(
                f"stop must be above start, and start not negative, got {self.start}, {self.stop}."
            )

    def __call__(self, step: int) -> float:
        """The radius at ``step``."""
        inside = self.start <= step and (self.stop is None or step < self.stop)
        return radius(self.rho, step) if inside else 0.0


@dataclass(frozen=True)
class ProportionalToLR:
    r"""A radius that follows the learning rate (GSAM; Zhuang et al., 2022, alg. 1).

    .. math::
        \rho_t = \rho_{\min} + (\rho_{\max} - \rho_{\min})
        \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}

    with the learning rate :math:`\eta_t` of the optimizer's first parameter group.

    Args:
        optimizer: The optimizer.
        max_rho: Radius at ``max_lr``.
        max_lr: The largest learning rate.
        min_rho: Radius at ``min_lr``.
        min_lr: The smallest learning rate.

    Raises:
        ValueError: If ``max_lr`` is not above ``min_lr``.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, ProportionalToLR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> sam = SAM(model, rho=ProportionalToLR(optimizer, max_rho=2.0, max_lr=0.1))
        >>> sam.rho(0)
        1.0
    """

    optimizer: torch.optim.Optimizer
    max_rho: float
    max_lr: float
    min_rho: float = 0.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_lr > self.min_lr:
            raise ValueError(f"max_lr must be above min_lr, got {self.max_lr} and {self.min_lr}.")

    def __call__(self, step: int) -> float:  # noqa: ARG002 - the learning rate knows the step
        """The radius at the learning rate of now, never below 0; ``step`` is not looked at."""
        share = (float(self.optimizer.param_groups[0]["lr"]) - self.min_lr) / (self.max_lr - self.min_lr)
        return max(0.0, self.min_rho + (self.max_rho - self.min_rho) * share)


@dataclass(frozen=True)
class Cosine:
    """From one radius to another along half a cosine.

    Args:
        first: Radius at step 0.
        last: Radius at step ``steps`` and after it.
        steps: Length in steps.

    Raises:
        ValueError: If ``steps`` is not positive.

    Example:
        >>> from lowland.sam import Cosine
        >>> rho = Cosine(0.0, 0.2, steps=10)
        >>> [round(rho(step), 4) for step in (0, 5, 10, 11)]
        [0.0, 0.1, 0.2, 0.2]
    """

    first: float
    last: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}.")

    def __call__(self, step: int) -> float:
        """The radius at ``step``."""
        share = 0.5 * (1.0 - math.cos(math.pi * min(step / self.steps, 1.0)))
        return self.first + (self.last - self.first) * share


def radii_at(rho: float | Schedule, step: int, own: Sequence[float | None]) -> list[float]:
    """The radius of each parameter: its group's ``own``, unless there is none or a schedule is at 0."""
    common = radius(rho, step)
    off = common == 0.0 and callable(rho)
    return [common if r is None or off else r for r in own]


def radius(rho: float | Schedule, step: int) -> float:
    """A constant radius, or the schedule's at ``step``."""
    return float(rho(step)) if callable(rho) else rho
