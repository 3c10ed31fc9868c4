"""How a climb goes: which ascent, how far, in how many steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

from lowland.sam.ascent import Ascent, AscentStep, BlindAscent, RememberingAscent, StartingAscent
from lowland.sam.kinds import is_a
from lowland.sam.noise import Noise
from lowland.sam.radii import Radii
from lowland.sam.vectors import Shown, Vector


@dataclass(frozen=True)
class Climbing:
    """An ascent and its numbers.

    Attributes:
        ascent: Where to climb.
        radii: How far each parameter may move.
        at: Those that may.
        steps: Number of steps.
        step_size: Size of one in units of the radius.
        both: Whether the gradient at the unperturbed weights, and the perturbation's length, are asked for.
        noise: Randomness of the ascent, and of the rounding of perturbed weights.
        in_halves: Whether the loss is asked for at the unperturbed weights in any case.
    """

    ascent: Ascent | BlindAscent
    radii: Radii
    at: Shown
    steps: int = 1
    step_size: float = 1.0
    both: bool = False
    noise: Noise | None = None
    in_halves: bool = False

    # What kind an ascent is, is asked once: a runtime-checkable protocol takes longer than a small layer.

    @cached_property
    def blind(self) -> BlindAscent | None:
        """The ascent, if it needs no gradient."""
        return cast(BlindAscent, self.ascent) if is_a(self.ascent, BlindAscent) else None

    @cached_property
    def starting(self) -> StartingAscent | None:
        """The ascent, if its gradient is taken elsewhere."""
        return cast(StartingAscent, self.ascent) if is_a(self.ascent, StartingAscent) else None

    @cached_property
    def remembers(self) -> bool:
        """Whether the ascent remembers gradients."""
        return is_a(self.ascent, RememberingAscent)

    @cached_property
    def one_pass(self) -> bool:
        """Whether a group takes a single pass."""
        return not self.radii.move or (self.blind is not None and not (self.both or self.in_halves))

    @cached_property
    def by_row(self) -> bool:
        """Whether the ascent is shown rows of sparse gradients."""
        return self.steps == 1 and bool(getattr(self.ascent, "by_row", False))

    @cached_property
    def absent_too(self) -> bool:
        """Whether the ascent is shown zeros where there is no gradient: the next step may have one."""
        return self.steps > 1 or self.remembers

    def step(self, g: Vector, e: Vector | None) -> Vector | None:
        """The perturbation after a step along ``g`` from ``e``; ``None`` if there is nowhere to climb."""
        rho = self.radii.rho
        size = rho * self.step_size
        assert g.at is not None
        seen = AscentStep(g.at.w, e, g, g.norm(), size, rho, names=g.at.names, noise=self.noise)
        return g.asked(cast(Ascent, self.ascent), seen)
