"""GD, n-SAM and 1-SAM rearranged: faster, and different in the last digits."""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numba
import numpy as np

from lowland.diagonal.kernels import Array, Data, Place, Record

_REORDERED = {"reassoc", "contract", "nsz", "arcp"}
"""What the compiler may do; NaN and infinity stay what they are."""

_LANES = 16
"""Features are padded to a multiple of this, so that no sum over them has a remainder."""


class Padded(NamedTuple):
    """Weights, and what the climbs took from the effective initialization, with zeros up to whole lanes."""

    u: Array
    v: Array
    exponent: Array

    @classmethod
    def of(cls, u: Array, v: Array) -> Padded:
        """At the weights ``u`` and ``v``."""
        room = -len(u) % _LANES
        return cls(np.pad(u, (0, room)), np.pad(v, (0, room)), np.zeros(len(u) + room))


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def algebraic(
    data: Data, here: Padded, m: int, rho: float, record: Record, place: Place, begin: int, end: int
) -> None:
    """Steps with groups of one example (``m = 1``), of all (``m > 1``) or without a climb (``m = 0``).

    ``here`` is changed in place; the record's exponent is left to the caller.
    """
    up, vp, exponent = here
    X, X_test = _padded(data.XT), _padded(data.XT_test)
    width = X.shape[1]
    square, cube = X * X, X * X * X
    beta, s, along, across = np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width)
    at, (gamma, area) = place.counts[0], place.sums
    for step in range(begin, end):
        if m == 1:
            loss = _examples(X, square, cube, data.y, up, vp, gamma, rho, beta, s, along, across, exponent)
        else:
            loss = _whole(X, data.y, up, vp, gamma, rho if m > 1 else 0.0, beta, along, across, exponent)
        area += gamma * loss
        if step == record.logged[at]:
            record.train[at] = _loss(X, data.y, up * vp)
            record.test[at] = _loss(X_test, data.y_test, up * vp)
            record.areas[at] = area
            at += 1
    place.counts[0] = at
    place.sums[1] = area


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _examples(
    X: Array,
    square: Array,
    cube: Array,
    y: Array,
    u: Array,
    v: Array,
    gamma: float,
    rho: float,
    beta: Array,
    s: Array,
    along: Array,
    across: Array,
    exponent: Array,
) -> float:
    r"""A step of 1-SAM without the perturbed weights of any example; returns the loss before it.

    With :math:`a_k = \rho r_k`, the perturbed output of example k is

    .. math::
        \langle x_k, (u + a_k x_k v) \odot (v + a_k x_k u)\rangle
        = \langle x_k, uv\rangle + a_k \langle x_k^2, u^2 + v^2\rangle + a_k^2 \langle x_k^3, uv\rangle,

    and with its perturbed residual :math:`p_k` its gradients are :math:`p_k x_k v + a_k p_k x_k^2 u` and the
    same with u and v exchanged.
    """
    n, d = X.shape
    for j in range(d):
        beta[j] = u[j] * v[j]
        s[j] = u[j] * u[j] + v[j] * v[j]
        along[j] = 0.0
        across[j] = 0.0
    loss = 0.0
    for i in range(n):
        out, first, second = 0.0, 0.0, 0.0
        for j in range(d):
            out += X[i, j] * beta[j]
            first += square[i, j] * s[j]
            second += cube[i, j] * beta[j]
        r = out - y[i]
        loss += r * r
        a = rho * r
        p = r + a * (first + a * second)
        ap = a * p
        for j in range(d):
            along[j] += p * X[i, j]
            across[j] += ap * square[i, j]
    factor = gamma / n
    for j in range(d):
        before = u[j]
        u[j] -= factor * (along[j] * v[j] + across[j] * before)
        v[j] -= factor * (along[j] * before + across[j] * v[j])
        exponent[j] += factor * across[j]
    return loss / (2.0 * n)


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _whole(
    X: Array,
    y: Array,
    u: Array,
    v: Array,
    gamma: float,
    rho: float,
    beta: Array,
    g: Array,
    p: Array,
    exponent: Array,
) -> float:
    """A step of n-SAM, or of gradient descent for ``rho = 0``; returns the loss before it."""
    n, d = X.shape
    for j in range(d):
        beta[j] = u[j] * v[j]
    loss = _slope(X, y, beta, g)
    reach = rho / n
    if rho > 0.0:
        for j in range(d):
            move = reach * g[j]
            beta[j] = (u[j] + move * v[j]) * (v[j] + move * u[j])
        _slope(X, y, beta, p)
    else:
        p[:] = g
    factor = gamma / n
    for j in range(d):
        move, before = reach * g[j], u[j]
        pull = factor * p[j]
        u[j] -= pull * (v[j] + move * before)
        v[j] -= pull * (before + move * v[j])
        exponent[j] += pull * move
    return loss


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _slope(X: Array, y: Array, beta: Array, g: Array) -> float:
    """The loss at ``beta``; n times its gradient goes to ``g``."""
    n, d = X.shape
    g[:] = 0.0
    loss = 0.0
    for i in range(n):
        r = -y[i]
        for j in range(d):
            r += X[i, j] * beta[j]
        loss += r * r
        for j in range(d):
            g[j] += r * X[i, j]
    return loss / (2.0 * n)


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _loss(X: Array, y: Array, beta: Array) -> float:
    n, d = X.shape
    total = 0.0
    for i in range(n):
        r = -y[i]
        for j in range(d):
            r += X[i, j] * beta[j]
        total += r * r
    return total / (2.0 * n) if n > 0 else np.nan


@numba.njit(cache=True, nogil=True)
@no_type_check
def _padded(XT: Array) -> Array:
    d, n = XT.shape
    X = np.zeros((n, (d + _LANES - 1) // _LANES * _LANES))
    for j in range(d):
        X[:, j] = XT[j]
    return X
