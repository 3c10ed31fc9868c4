"""The passes of one group."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowland.sam.climb import Climb, Climber
from lowland.sam.examples import Examples
from lowland.sam.passes import Pass, Passes
from lowland.sam.randomness import RandomState


@dataclass(frozen=True)
class GroupPasses:
    """Both passes of a group; where nothing was climbed, or there was one pass only, they are the same."""

    at_weights: Pass
    perturbed: Pass
    climb: Climb


def run_group(
    passes: Passes, climber: Climber, group: Examples, source: Source | None, *, gradient_at_weights: bool
) -> GroupPasses:
    """Runs one group: the climb on ``source`` (``None``: on the group itself), then the perturbed pass.

    All passes start from the same random draws; afterwards the generators stand where the first pass
    left them.
    """
    if climber.radii.rho == 0.0:
        start = passes.at_weights(group, again=False)
        return GroupPasses(start, start, climber.nowhere(passes, start))
    draws = RandomState.capture(passes.devices)
    if climber.blind is not None and not gradient_at_weights:
        climb = climber.without_gradient(passes)
        only = passes.elsewhere(group, climb.move, first=True, again=False, last=True)
        return GroupPasses(only, only, climb)
    with passes.buffers.same_start():
        if climber.blind is not None:
            return _run_blind(passes, climber, group, draws)
        return _run_climb(passes, climber, group, source, draws, gradient_at_weights=gradient_at_weights)


def _run_climb(
    passes: Passes,
    climber: Climber,
    group: Examples,
    source: Source | None,
    draws: RandomState,
    *,
    gradient_at_weights: bool,
) -> GroupPasses:
    if source is None:
        wanted = None if gradient_at_weights else climber.wanted
        start = passes.elsewhere(group, climber.start(passes), wanted, first=True, last=True)
        after = RandomState.capture(passes.devices)
        climb = climber.climb(passes, start, group, draws)
        has_gradient = wanted is None
    else:
        climb = source.climb(passes, climber, draws)
        draws.restore()
        has_gradient = gradient_at_weights or climb.led_nowhere
        start = passes.at_weights(group) if has_gradient else passes.value_at_weights(group)
        after = RandomState.capture(passes.devices)
    second = climb.not_finite or start
    if climb.move is not None or (climb.led_nowhere and not has_gradient):
        draws.restore()
        if not gradient_at_weights:
            start = second = replace(start, gradients=[])
        second = passes.elsewhere(group, climb.move, last=source is None or not source.shared)
    after.restore()
    return GroupPasses(start, second, climb)


class Source:
    """Examples that a climb sees in place of its group's own.

    Args:
        group: The examples.
        shared: Whether several groups climb on them: once, for all.
    """

    def __init__(self, group: Examples, *, shared: bool) -> None:
        self.group = group
        self.shared = shared
        self._climb: Climb | None = None

    def climb(self, passes: Passes, climber: Climber, draws: RandomState) -> Climb:
        """The climb."""
        if self._climb is not None:
            return self._climb
        start = passes.elsewhere(self.group, climber.start(passes), climber.wanted, last=True)
        climb = climber.climb(passes, start, self.group, draws)
        if self.shared:
            self._climb = replace(climb, gradients=None)  # remembered once
        return climb


def _run_blind(passes: Passes, climber: Climber, group: Examples, draws: RandomState) -> GroupPasses:
    """Both passes of an ascent that needs no gradient, where the one at the weights is asked for as well."""
    climb = climber.without_gradient(passes)
    start = passes.at_weights(group)
    if climb.move is None:
        return GroupPasses(start, start, climb)
    after = RandomState.capture(passes.devices)
    draws.restore()
    second = passes.elsewhere(group, climb.move, last=True)
    after.restore()
    return GroupPasses(start, second, climb)
