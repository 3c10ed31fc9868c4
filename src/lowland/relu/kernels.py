r"""Training of one-hidden-layer ReLU networks at native speed.

The loss is :math:`\frac12 \sum_i (f(x_i) - y_i)^2`, a sum. Neurons lie side by side, so that a pass is a few
vector instructions per example.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np

Array = Any

_REORDERED = {"reassoc", "contract", "nsz", "arcp"}
"""What the compiler may do; NaN and infinity stay what they are."""


class Rule(NamedTuple):
    """What a step does.

    Attributes:
        m: Examples in a group; 0 for no climb.
        gamma: Step size at the beginning.
        horizon: Steps after which the step size has fallen to 0, linearly; 0 if it is constant.
        rho: The climb's length, or the factor on the gradient if not ``normalized``.
        normalized: Whether ``rho`` is a length.
        stop_loss: Training ends when the loss is not larger.
        stop_perturbed: Whether that is the loss at the perturbed weights.
        order: Examples of each step, a row that is used again and again if there is only one.
    """

    m: int
    gamma: float
    horizon: int
    rho: float
    normalized: bool
    stop_loss: float
    stop_perturbed: bool
    order: Array


class Weights(NamedTuple):
    """Of a network, or the like: a gradient."""

    w: Array
    b: Array
    a: Array


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def descend(
    x: Array,
    y: Array,
    here: Weights,
    rule: Rule,
    logged: Array,
    losses: Array,
    at: int,
    begin: int,
    end: int,
) -> tuple[int, int]:
    """Steps ``begin`` to ``end``, or until the loss is small, ``here`` in place.

    Args:
        x: Inputs, a row per example.
        y: Targets.
        here: The weights.
        rule: What to do.
        logged: Steps before which the losses are noted, rising.
        losses: Where they go: at the weights, and at the perturbed ones.
        at: How many of ``logged`` were reached before.
        begin: Steps taken before.
        end: Steps taken at the end, unless the loss is small.

    Returns:
        Steps taken, less than ``end`` if the loss is small, and how many of ``logged`` were reached.
    """
    d, width = here.w.shape
    size = rule.order.shape[1]
    there = Weights(np.empty((d, width)), np.empty(width), np.empty(width))
    slope = Weights(np.empty((d, width)), np.empty(width), np.empty(width))
    total = Weights(np.empty((d, width)), np.empty(width), np.empty(width))
    z, r = np.zeros((size + 3, width)), np.empty(size)  # the last examples are read as four
    for step in range(begin, end):
        index = rule.order[step if len(rule.order) > 1 else 0]
        gamma = rule.gamma * (1.0 - (step + 1) / rule.horizon) if rule.horizon > 0 else rule.gamma
        loss = _forward(x, y, here, index, 0, size, z, r)
        climbed = 0.0
        if rule.m == 0:
            _clear(slope)
            _backward(x, here, index, 0, size, z, r, slope)
            climbed = loss
        else:
            _clear(total)
            for first in range(0, size, rule.m):
                last = min(first + rule.m, size)
                _clear(slope)
                _backward(x, here, index, first, last, z, r, slope)
                _climb(here, slope, rule, there)
                climbed += _forward(x, y, there, index, first, last, z, r)
                _backward(x, there, index, first, last, z, r, total)
            slope, total = total, slope
        if step == logged[at]:
            losses[0, at] = loss
            losses[1, at] = climbed
            at += 1
        if (climbed if rule.stop_perturbed else loss) <= rule.stop_loss:
            return step, at
        for h in range(width):
            here.b[h] -= gamma * slope.b[h]
            here.a[h] -= gamma * slope.a[h]
        for k in range(d):
            for h in range(width):
                here.w[k, h] -= gamma * slope.w[k, h]
    return end, at


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _forward(
    x: Array, y: Array, net: Weights, index: Array, first: int, last: int, z: Array, r: Array
) -> float:
    """The loss of some examples; their inputs to the ReLU go to ``z``, their residuals to ``r``."""
    d, width = net.w.shape
    loss = 0.0
    for p in range(first, last):
        i = index[p]
        for h in range(width):
            z[p, h] = net.b[h] + x[i, 0] * net.w[0, h]
        for k in range(1, d):
            for h in range(width):
                z[p, h] += x[i, k] * net.w[k, h]
        out = 0.0
        for h in range(width):
            out += net.a[h] * (z[p, h] if z[p, h] > 0.0 else 0.0)
        r[p] = out - y[i]
        loss += 0.5 * r[p] * r[p]
    return loss


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _backward(
    x: Array, net: Weights, index: Array, first: int, last: int, z: Array, r: Array, slope: Weights
) -> None:
    """Adds the gradient of some examples' loss to ``slope``, four examples at a time.

    Each loop writes to at most two arrays: with more, the compiler cannot tell that they are apart.
    """
    d, width = net.w.shape
    for p in range(first, last, 4):
        r0 = r[p]
        r1 = r[p + 1] if p + 1 < last else 0.0
        r2 = r[p + 2] if p + 2 < last else 0.0
        r3 = r[p + 3] if p + 3 < last else 0.0
        z0, z1, z2, z3 = z[p], z[p + 1], z[p + 2], z[p + 3]
        for h in range(width):
            slope.a[h] += (
                r0 * (z0[h] if z0[h] > 0.0 else 0.0)
                + r1 * (z1[h] if z1[h] > 0.0 else 0.0)
                + r2 * (z2[h] if z2[h] > 0.0 else 0.0)
                + r3 * (z3[h] if z3[h] > 0.0 else 0.0)
            )
        for h in range(width):
            slope.b[h] += net.a[h] * (
                (r0 if z0[h] > 0.0 else 0.0)
                + (r1 if z1[h] > 0.0 else 0.0)
                + (r2 if z2[h] > 0.0 else 0.0)
                + (r3 if z3[h] > 0.0 else 0.0)
            )
        i0, i1 = index[p], index[min(p + 1, last - 1)]
        i2, i3 = index[min(p + 2, last - 1)], index[min(p + 3, last - 1)]
        for k in range(d):
            x0, x1, x2, x3 = r0 * x[i0, k], r1 * x[i1, k], r2 * x[i2, k], r3 * x[i3, k]
            for h in range(width):
                slope.w[k, h] += net.a[h] * (
                    (x0 if z0[h] > 0.0 else 0.0)
                    + (x1 if z1[h] > 0.0 else 0.0)
                    + (x2 if z2[h] > 0.0 else 0.0)
                    + (x3 if z3[h] > 0.0 else 0.0)
                )


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _climb(here: Weights, slope: Weights, rule: Rule, there: Weights) -> None:
    """The perturbed weights go to ``there``."""
    d, width = here.w.shape
    factor = rule.rho
    if rule.normalized:
        square = 0.0
        for h in range(width):
            square += slope.b[h] * slope.b[h] + slope.a[h] * slope.a[h]
        for k in range(d):
            for h in range(width):
                square += slope.w[k, h] * slope.w[k, h]
        factor = rule.rho / np.sqrt(square) if square > 0.0 else 0.0
    for h in range(width):
        there.b[h] = here.b[h] + factor * slope.b[h]
        there.a[h] = here.a[h] + factor * slope.a[h]
    for k in range(d):
        for h in range(width):
            there.w[k, h] = here.w[k, h] + factor * slope.w[k, h]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _clear(slope: Weights) -> None:
    slope.w[:] = 0.0
    slope.b[:] = 0.0
    slope.a[:] = 0.0
