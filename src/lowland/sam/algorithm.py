r"""m-SAM, once: for one group and for many, for every ascent, source and rule.

With groups :math:`S` of m examples (Andriushchenko & Flammarion, 2022, eq. 4):

.. math::
    g_S = \nabla L_S(w), \qquad e_S = \mathrm{ascent}(g_S, w), \qquad
    \sum_S \frac{|S|}{B}\, \nabla L_S(w + e_S).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from lowland.sam.climbing import Climbing
from lowland.sam.looks.look import Look, Pass
from lowland.sam.vectors import Number, Vector


@dataclass(frozen=True)
class Climb:
    """Where a climb led.

    Attributes:
        e: The perturbation of each group; ``None`` if there was nowhere to climb.
        gradient_norm: The l2 norm of the gradient that each group started from; NaN if it needs none,
            ``None`` where nothing was to be climbed.
        length: The l2 norm of each perturbation; 0 unless asked for.
        remembered: The gradients, if the ascent remembers them.
        stopped: The pass whose gradient was not finite, which ended the climb, if there was one.
    """

    e: Vector | None = None
    gradient_norm: Number | None = None
    length: Number = 0.0
    remembered: Vector | None = None
    stopped: Pass | None = None

    @property
    def led_somewhere(self) -> bool:
        """Whether some weight may move: not for a gradient that is zero, or not finite."""
        return self.e is not None and not self.e.is_known_zero


@dataclass(frozen=True)
class Passes:
    """The first pass of some groups and the last one, which may be the same, and the climb between them."""

    at_weights: Pass
    perturbed: Pass
    climb: Climb


def m_sam(look: Look, how: Climbing, source: Callable[[], Climb] | None = None) -> Passes:
    """The passes of the groups that are looked at: at ``w``, and at ``w + e``.

    Args:
        look: The objective of the groups, around the weights.
        how: The ascent, and how far it climbs.
        source: The climb on other examples than the groups' own.
    """
    with nullcontext() if how.one_pass else look.same_world():
        if not how.radii.move:
            only = look.mean(None, first=True)
            return Passes(only, only, Climb())
        if how.blind is not None:
            e = look.drawn(how.blind.without_gradient)
            found = Climb(e, math.nan, length(look, how, e))
            start = look.mean(None, first=True) if how.both else None
            if how.in_halves and start is None:
                start = look.value(None, first=True)
        elif source is None:
            start = look.slope(begun(look, how), first=True)
            found = climb(look, how, start)
            if found.led_somewhere and not how.both:
                start = start.without_gradient()  # half the memory of a step
        else:
            found = source()
            start = look.slope(None, first=True) if how.both else look.value(None, first=True)
        if start is not None and found.stopped is not None:
            return Passes(start, found.stopped, found)
        if start is not None and start.mean is not None and not found.led_somewhere:
            return Passes(start, start, found)
        perturbed = look.mean(found.e, first=start is None)
        return Passes(start or perturbed, perturbed, found)


def climb(look: Look, how: Climbing, start: Pass) -> Climb:
    """Steps of the ascent, each along the gradient at the point where the one before it led."""
    e, seen, g = None, start, look.shown(start)
    norm, remembered = g.norm(), g if how.remembers else None
    for step in range(how.steps):
        if step > 0:
            seen = look.slope(e)
            g = look.shown(seen)
        if not g.is_finite():
            return Climb(gradient_norm=norm, stopped=seen)
        moved = how.step(g, e)
        if moved is None:
            break  # there is nowhere to climb from here
        e = moved
        if e.is_known_zero:
            break  # there was nowhere to climb, and there will not be
    return Climb(e, norm, length(look, how, e), remembered)


def begun(look: Look, how: Climbing) -> Vector | None:
    """Where the first gradient is taken, less ``w``; ``None`` for there."""
    return look.drawn(how.starting.start) if how.starting is not None else None


def climb_from_start(look: Look, how: Climbing) -> Climb:
    """The climb on examples that are no group's own."""
    return climb(look, how, look.slope(begun(look, how)))


def length(look: Look, how: Climbing, e: Vector | None) -> Number:
    """The l2 norm of each group's perturbation, where it is asked for."""
    return 0.0 if e is None or not how.both else look.everywhere(e).norm()
