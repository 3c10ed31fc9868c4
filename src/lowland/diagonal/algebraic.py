"""1-SAM rearranged: faster, and different in the last digits."""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

from lowland.diagonal.kernels import Array, Data, Record

_REORDERED = {"reassoc", "contract", "nsz", "arcp"}
"""What the compiler may do; NaN and infinity stay what they are."""


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def algebraic(data: Data, u: Array, v: Array, gamma: float, rho: float, record: Record) -> None:
    r"""1-SAM without the perturbed weights of any example, ``u`` and ``v`` in place.

    With :math:`a_k = \rho r_k`, the perturbed output of example k is

    .. math::
        \langle x_k, (u + a_k x_k v) \odot (v + a_k x_k u)\rangle
        = \langle x_k, uv\rangle + a_k \langle x_k^2, u^2 + v^2\rangle + a_k^2 \langle x_k^3, uv\rangle,

    and with its perturbed residual :math:`p_k` its gradients are :math:`p_k x_k v + a_k p_k x_k^2 u` and the
    same with u and v exchanged.
    """
    X, y = data.X, data.y
    n, d = X.shape
    X_test = np.ascontiguousarray(data.XT_test.T)
    square, cube = X * X, X * X * X
    beta, s = np.empty(d), np.empty(d)
    along, across = np.empty(d), np.empty(d)
    at, area, factor = 0, 0.0, gamma / n
    for step in range(record.logged[-1] + 1):
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
            for j in range(d):
                along[j] += p * X[i, j]
                across[j] += a * p * square[i, j]
        area += gamma * loss / (2.0 * n)
        for j in range(d):
            before = u[j]
            u[j] -= factor * (along[j] * v[j] + across[j] * before)
            v[j] -= factor * (along[j] * before + across[j] * v[j])
            record.exponent[j] += factor * across[j]
        if step == record.logged[at]:
            record.train[at] = _loss(X, y, u * v)
            record.test[at] = _loss(X_test, data.y_test, u * v)
            record.areas[at] = area
            at += 1


@numba.njit(cache=True, nogil=True, fastmath=_REORDERED)
@no_type_check
def _loss(X: Array, y: Array, beta: Array) -> float:
    n, d = X.shape
    total = 0.0
    for i in range(n):
        out = 0.0
        for j in range(d):
            out += X[i, j] * beta[j]
        total += (out - y[i]) ** 2
    return total / (2.0 * n) if n > 0 else np.nan
