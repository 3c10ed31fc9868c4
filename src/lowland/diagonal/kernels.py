r"""The dynamics at native speed, in the order of their definition.

The gradient of :math:`L(u, v) = \frac{1}{2n}\|X(u \odot v) - y\|^2` is :math:`(g \odot v, g \odot u)` with
:math:`g = X^\top(X(u \odot v) - y)/n`. A group S of m examples has :math:`g_S = X_S^\top r_S / m`, climbs to
:math:`u_S = u + \rho\, g_S \odot v`, :math:`v_S = v + \rho\, g_S \odot u`, and contributes its gradient
there; the step is their mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np

Array = Any


class Data(NamedTuple):
    """Inputs with a row per example and with a column per example, and targets."""

    X: Array
    XT: Array
    y: Array
    XT_test: Array
    y_test: Array


class Rule(NamedTuple):
    """What a step does.

    Attributes:
        m: Examples in a group; 0 for plain gradient descent.
        gamma: Step size, or the step's length if ``normalized_step``.
        rho: Factor on a group's gradient in its climb, or the climb's length if ``normalized``.
        normalized: Whether ``rho`` is a length.
        derivative_only: Whether only the residuals see the climb.
        normalized_step: Whether ``gamma`` is a length.
        weight_decay: Factor on the weights, added to the gradient.
        balance: Strength of the pull to ``|u| = |v|``, the gradient of ``balance/4 |u^2 - v^2|^2``.
        thresholds: Training losses, falling; the step size is halved below each.
        order: The example of each step of SGD; empty for full-batch methods.
    """

    m: int
    gamma: float
    rho: float
    normalized: bool
    derivative_only: bool
    normalized_step: bool
    weight_decay: float
    balance: float
    thresholds: Array
    order: Array


class Record(NamedTuple):
    """Where a run is noted down.

    Attributes:
        logged: Steps after which the losses are noted, rising; the last one is the last step.
        train: Training losses.
        test: Test losses.
        areas: Sums of the losses before each step, times the step size.
        exponent: Sums of the step size times ``rho g_S g_S'``, per coordinate, averaged over the groups:
            what shrinks the effective initialization (Andriushchenko & Flammarion, 2022, Theorem 1).
    """

    logged: Array
    train: Array
    test: Array
    areas: Array
    exponent: Array


class Place(NamedTuple):
    """How far a run has come, which goes on bit for bit in another call of the kernel.

    Attributes:
        counts: How many losses are noted, and how often the step size was halved.
        sums: The step size, and the sum of the losses times the step size.
    """

    counts: Array
    sums: Array

    @classmethod
    def start(cls, gamma: float) -> Place:
        """Before the first step."""
        return cls(np.zeros(2, np.int64), np.array([gamma, 0.0]))


@numba.njit(cache=True, nogil=True)
@no_type_check
def in_order(
    data: Data, u: Array, v: Array, rule: Rule, record: Record, place: Place, begin: int, end: int
) -> None:
    """Steps ``begin`` to ``end`` of one method, ``u`` and ``v`` in place, in the order of the definition."""
    X, XT, y = data.X, data.XT, data.y
    n, d = X.shape
    gu, gv = np.empty(d), np.empty(d)
    r, r_test = np.empty(n), np.empty(len(data.y_test))
    room = np.empty((2, max(n, d))), np.empty((2, d))
    (at, halved), (gamma, area) = place.counts, place.sums
    for step in range(begin, end):
        loss = residuals(XT, y, u * v, r)
        area += gamma * loss
        while halved < len(rule.thresholds) and loss < rule.thresholds[halved]:
            gamma *= 0.5
            halved += 1
        gu[:] = 0.0
        gv[:] = 0.0
        if len(rule.order) > 0:
            k = rule.order[step]
            for j in range(d):
                gu[j] = r[k] * X[k, j] * v[j]
                gv[j] = r[k] * X[k, j] * u[j]
        elif rule.m == 1:
            _examples(XT, y, u, v, r, rule, room[0], gu, gv, gamma, record.exponent)
        else:
            size = n if rule.m == 0 else rule.m
            for first in range(0, n, size):
                last = min(first + size, n)
                _group(X, y, u, v, r, first, last, rule, room, gu, gv, gamma, record.exponent)
        if rule.weight_decay > 0.0 or rule.balance > 0.0:
            for j in range(d):
                pull = rule.balance * (u[j] * u[j] - v[j] * v[j])
                gu[j] += (rule.weight_decay + pull) * u[j]
                gv[j] += (rule.weight_decay - pull) * v[j]
        factor = gamma
        if rule.normalized_step:
            length = np.sqrt(np.sum(gu * gu) + np.sum(gv * gv))
            factor = gamma / length if length > 0.0 else 0.0
        for j in range(d):
            u[j] -= factor * gu[j]
            v[j] -= factor * gv[j]
        if step == record.logged[at]:
            record.train[at] = residuals(XT, y, u * v, r)
            record.test[at] = residuals(data.XT_test, data.y_test, u * v, r_test)
            record.areas[at] = area
            at += 1
    place.counts[:] = at, halved
    place.sums[:] = gamma, area


@numba.njit(cache=True, nogil=True)
@no_type_check
def residuals(XT: Array, y: Array, beta: Array, r: Array) -> float:
    """The loss; residuals go to ``r``. Each is summed in order, all of them side by side."""
    d, n = XT.shape
    r[:] = 0.0
    for j in range(d):
        for i in range(n):
            r[i] += XT[j, i] * beta[j]
    total = 0.0
    for i in range(n):
        r[i] -= y[i]
        total += r[i] * r[i]
    return total / (2.0 * n) if n > 0 else np.nan


@numba.njit(cache=True, nogil=True)
@no_type_check
def _examples(
    XT: Array,
    y: Array,
    u: Array,
    v: Array,
    r: Array,
    rule: Rule,
    room: Array,
    gu: Array,
    gv: Array,
    gamma: float,
    exponent: Array,
) -> None:
    """The mean gradient of groups of one example: what :func:`_group` adds, all examples side by side."""
    d, n = XT.shape
    scale, out = room[0], room[1]
    out[:n] = 0.0
    if rule.normalized:
        for j in range(d):
            for k in range(n):
                out[k] += XT[j, k] * XT[j, k] * (u[j] * u[j] + v[j] * v[j])
    for k in range(n):
        scale[k] = rule.rho * r[k]
        if rule.normalized:
            length = np.sqrt(out[k]) * abs(r[k])
            scale[k] = scale[k] / length if length > 0.0 else 0.0
        out[k] = -y[k]
    for j in range(d):
        for k in range(n):
            move = scale[k] * XT[j, k]
            out[k] += XT[j, k] * ((u[j] + move * v[j]) * (v[j] + move * u[j]))
    for j in range(d):
        sum_u, sum_v, sum_e = 0.0, 0.0, 0.0
        for k in range(n):
            pull = out[k] * XT[j, k]
            move = scale[k] * XT[j, k]
            kept = 0.0 if rule.derivative_only else move
            sum_u += pull * (v[j] + kept * u[j])
            sum_v += pull * (u[j] + kept * v[j])
            sum_e += pull * kept
        gu[j] = sum_u / n
        gv[j] = sum_v / n
        exponent[j] += gamma * sum_e / n


@numba.njit(cache=True, nogil=True)
@no_type_check
def _group(
    X: Array,
    y: Array,
    u: Array,
    v: Array,
    r: Array,
    first: int,
    last: int,
    rule: Rule,
    room: tuple[Array, Array],
    gu: Array,
    gv: Array,
    gamma: float,
    exponent: Array,
) -> None:
    """Adds a group's share of the mean gradient, at its own perturbed weights."""
    n, d = X.shape
    g, perturbed = room[0][0], room[0][1]
    up, vp = room[1][0], room[1][1]
    g[:d] = 0.0
    for i in range(first, last):
        for j in range(d):
            g[j] += X[i, j] * r[i]
    scale = rule.rho / (last - first) if rule.m > 0 else 0.0
    if rule.normalized and rule.m > 0:
        square = 0.0
        for j in range(d):
            square += g[j] * g[j] * (u[j] * u[j] + v[j] * v[j])
        scale = rule.rho / np.sqrt(square) if square > 0.0 else 0.0
    for j in range(d):
        up[j] = u[j] + scale * g[j] * v[j]
        vp[j] = v[j] + scale * g[j] * u[j]
    perturbed[:d] = 0.0
    for i in range(first, last):
        out = 0.0
        for j in range(d):
            out += X[i, j] * (up[j] * vp[j])
        out -= y[i]
        for j in range(d):
            perturbed[j] += X[i, j] * out
    for j in range(d):
        gu[j] += perturbed[j] * (v[j] if rule.derivative_only else vp[j]) / n
        gv[j] += perturbed[j] * (u[j] if rule.derivative_only else up[j]) / n
        kept = 0.0 if rule.derivative_only else scale * g[j]
        exponent[j] += gamma * kept * perturbed[j] / n
