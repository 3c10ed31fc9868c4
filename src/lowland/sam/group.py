"""The climb and the two passes of one group."""

import math
from dataclasses import dataclass

from torch import Tensor

from lowland.sam.ascent import Ascent, AscentStep
from lowland.sam.norm import l2_norm
from lowland.sam.passes import Group, Pass, Passes
from lowland.sam.randomness import RandomState


@dataclass(frozen=True)
class Climb:
    """Where a climb led.

    Attributes:
        e: The perturbation; ``None`` if there was nowhere to climb.
        gradient_norm: The l2 norm of the gradient at the unperturbed weights.
        not_finite: The pass whose gradient was not finite, which ended the climb, if there was one.
    """

    e: list[Tensor] | None
    gradient_norm: float
    not_finite: Pass | None


@dataclass(frozen=True)
class Climber:
    """Several steps of an ascent.

    ``measure`` asks for the gradient's norm even where it decides nothing, at ``rho = 0``.
    """

    ascent: Ascent
    rho: float
    steps: int
    step_size: float
    measure: bool

    def climb(self, passes: Passes, start: Pass, group: Group, draws: RandomState) -> Climb:
        """The perturbation of a group from its pass at the unperturbed weights."""
        if self.rho == 0 and not self.measure:
            return Climb(None, math.nan, not_finite=None)
        here = start
        e: list[Tensor] | None = None
        first_norm = math.nan
        for step in range(self.steps):
            if step > 0:
                draws.restore()
                here = passes.elsewhere(group, e)
            gradients = passes.unscaled(here.gradients)
            norm = l2_norm(gradients).item()
            first_norm = norm if step == 0 else first_norm
            if not math.isfinite(norm):
                return Climb(None, first_norm, not_finite=here)
            if self.rho == 0:
                break
            size = self.rho * self.step_size
            e = self.ascent(AscentStep(passes.params, e, gradients, norm, size, self.rho))
            if e is None:
                break
        return Climb(e, first_norm, not_finite=None)


@dataclass(frozen=True)
class GroupPasses:
    """Both passes of a group; where nothing was climbed the second is the first."""

    at_weights: Pass
    perturbed: Pass
    climb: Climb


def run_group(
    passes: Passes, climber: Climber, group: Group, source: Group | None, *, gradient_at_weights: bool
) -> GroupPasses:
    """Runs one group: the climb on ``source`` (``None``: on the group itself), then the perturbed pass.

    All passes start from the same random draws; afterwards the generators stand where the first pass
    left them.
    """
    draws = RandomState.capture(passes.devices)
    start = passes.at_weights(group) if source is None else passes.elsewhere(source, None)
    after = RandomState.capture(passes.devices)
    climb = climber.climb(passes, start, group if source is None else source, draws)
    if source is not None:
        draws.restore()
        gradient_needed = gradient_at_weights or climb.e is None
        start = passes.at_weights(group) if gradient_needed else passes.value_at_weights(group)
    second = climb.not_finite or start
    if climb.e is not None:
        draws.restore()
        second = passes.elsewhere(group, climb.e)
    after.restore()
    return GroupPasses(start, second, climb)
