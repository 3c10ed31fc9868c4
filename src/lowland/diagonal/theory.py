r"""What the implicit bias of diagonal linear networks predicts.

Gradient flow on :math:`L(u, v)` from :math:`w_\pm = \frac12(u \pm v) = \alpha` ends in the interpolator that
minimizes the hyperbolic entropy :math:`\phi_\alpha` (Woodworth et al., 2020). Climbs shrink :math:`\alpha` on
the way: by :math:`e^{-\rho\Delta}` (Andriushchenko & Flammarion, 2022, Theorem 1), where along the flow
exactly :math:`\rho\Delta = \int \rho\, g_S \odot g_S'\, dt`, averaged over groups, with the gradient
:math:`g_S'` at the perturbed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import linprog, minimize

from lowland.diagonal.dynamics import Plan, Result
from lowland.diagonal.problem import Array, Problem
from lowland.errors import InputError

Vector = Float[Array, " d"]


_RESOLVED = 1e-10
"""Where :math:`|u^2 - v^2|` is a smaller share of :math:`u^2 + v^2`, rounding decides it."""


@dataclass(frozen=True)
class Comparison:
    r"""A run beside what Theorem 1 says of it; NaN if it diverged.

    Attributes:
        shrunk: :math:`\log(\alpha / \alpha_\text{eff})` read off the final weights; NaN where
            rounding hides it.
        predicted: :math:`\rho\Delta`, the same from the trajectory; they differ by what steps that are not
            infinitesimal shrink by themselves.
        alpha: The effective initialization in :math:`w_\pm` units, predicted where rounding hides it.
        minimizer: The interpolator that minimizes the potential of ``alpha``.
        distance: Distance of the trained predictor from it, relative to its norm.
        kkt: See :func:`kkt_residual`.
        area: Integral of the training loss.
    """

    shrunk: Vector
    predicted: Vector
    alpha: Vector
    minimizer: Vector
    distance: float
    kkt: float
    area: float

    @property
    def hidden(self) -> int:
        """Coordinates whose effective initialization rounding hides."""
        return int(np.isnan(self.shrunk).sum())


def compare(problem: Problem, plan: Plan, result: Result) -> Comparison:
    """The theorem's statements about a run of ``plan``."""
    log_start = np.log(effective_alpha(*plan.start(problem.d)))
    if not np.isfinite(result.beta).all():
        nothing = np.full(problem.d, np.nan)
        return Comparison(nothing, result.exponent, nothing, nothing, np.nan, np.nan, np.nan)
    u, v = result.u, result.v
    seen = np.abs((u - v) * (u + v)) > _RESOLVED * (u * u + v * v)
    log_read = np.log(np.where(seen, effective_alpha(u, v), np.nan))
    log_alpha = np.where(seen, log_read, log_start - result.exponent)
    minimizer = _minimizer(problem, log_alpha)
    return Comparison(
        log_start - log_read,
        result.exponent,
        np.exp(log_alpha),
        minimizer,
        float(np.linalg.norm(result.beta - minimizer) / np.linalg.norm(minimizer)),
        _outside(_slope(result.beta, log_alpha), problem.X),
        float(result.area[-1]),
    )


def potential(beta: ArrayLike, alpha: ArrayLike) -> float:
    r"""The hyperbolic entropy :math:`\phi_\alpha(\beta) = \sum_i \alpha_i^2\, q(\beta_i / \alpha_i^2)`.

    :math:`q(z) = 2 - \sqrt{4 + z^2} + z \operatorname{arcsinh}(z/2)`, in units of :math:`w_\pm`. Small
    :math:`\alpha` make it like the l1 norm, large ones like the squared l2 norm. (With one factor
    :math:`\alpha` for all, its minimizers are those of the paper's :math:`\alpha \sum q`.)
    """
    square = np.square(np.asarray(alpha, dtype=np.float64))
    z = np.asarray(beta, dtype=np.float64) / square
    return float(np.sum(square * (2.0 - np.sqrt(4.0 + z * z) + z * np.arcsinh(z / 2.0))))


def effective_alpha(u: ArrayLike, v: ArrayLike) -> Vector:
    r""":math:`\sqrt{|w_+ w_-|} = \frac12\sqrt{|u^2 - v^2|}`, which gradient flow conserves."""
    u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    alpha: Array = 0.5 * np.sqrt(np.abs((u - v) * (u + v)))
    return alpha


def predicted_alpha(result: Result, alpha: ArrayLike) -> Vector:
    r""":math:`\alpha \odot e^{-\rho\Delta}` from the trajectory, for :math:`w_\pm = \alpha` at the start."""
    shrunk: Array = np.asarray(alpha, dtype=np.float64) * np.exp(-result.exponent)
    return shrunk


def minimum_potential(problem: Problem, alpha: ArrayLike) -> Vector:
    r"""The interpolator :math:`X\beta = y` that minimizes :math:`\phi_\alpha`, by its convex dual.

    With :math:`\beta(\nu) = 2\alpha^2 \sinh(X^\top \nu)`, the dual minimizes
    :math:`\sum_i 2\alpha_i^2 \cosh(x_i^\top \nu) - \langle \nu, y \rangle`: smooth, and in as many dimensions
    as examples. It is solved by a trust region, from large :math:`\alpha` down to the given ones.

    Raises:
        InputError: If an ``alpha`` is not positive.
    """
    return _minimizer(problem, np.log(_positive(alpha, problem.d)))


def _minimizer(problem: Problem, log_alpha: Array) -> Array:
    """Of the potential, from logarithms: effective initializations may be too small for a number."""
    easy = min(-log_alpha.min(), _LARGEST - log_alpha.max())
    path = np.arange(max(0.0, easy), 0.0, -_PATH_STEP)
    before, dual = np.zeros(problem.n), np.zeros(problem.n)
    for shift in [*path, 0.0]:
        solved = _dual(problem, log_alpha + shift, 2.0 * dual - before, dual)
        before, dual = dual, solved
    beta: Array = _times_alpha(np.sinh, problem.X.T @ dual, log_alpha)
    return beta


_PATH_STEP = 3.0
_LARGEST = 100.0
"""Of log α on the path: the squares of its Hessian's entries are numbers still."""


def _times_alpha(function: Callable[[Array], Array], s: Array, log_alpha: Array) -> Array:
    r""":math:`2\alpha^2 \sinh s` or :math:`2\alpha^2 \cosh s`, without overflow on the way."""
    far = np.abs(s) > _FAR
    near = 2.0 * np.exp(2.0 * log_alpha) * function(np.where(far, 0.0, s))
    sign = np.sign(s) if function is np.sinh else 1.0
    with np.errstate(over="ignore"):
        away = sign * np.exp(np.abs(s) + 2.0 * log_alpha)
    value: Array = np.where(far, away, near)
    return value


_FAR = 30.0
"""From here on, sinh and cosh are half an exponential to the last digit."""


def _dual(problem: Problem, log_alpha: Array, guess: Array, fallback: Array) -> Array:
    X, y = problem.X, problem.y

    def value(nu: Array) -> float:
        return float(np.sum(_times_alpha(np.cosh, X.T @ nu, log_alpha)) - nu @ y)

    def gradient(nu: Array) -> Array:
        slope: Array = X @ _times_alpha(np.sinh, X.T @ nu, log_alpha) - y
        return slope

    def hessian(nu: Array) -> Array:
        curvature: Array = (X * _times_alpha(np.cosh, X.T @ nu, log_alpha)) @ X.T
        return curvature

    start = guess if value(guess) < value(fallback) else fallback
    options = {"gtol": 1e-12, "maxiter": 500}
    nu: Array = minimize(value, start, jac=gradient, hess=hessian, method="trust-exact", options=options).x
    for _ in range(3):  # the trust region stops at the resolution of the value; Newton does not
        step = np.linalg.lstsq(hessian(nu), gradient(nu), rcond=None)[0]
        if np.abs(gradient(nu - step)).max() < np.abs(gradient(nu)).max():
            nu = nu - step
    return nu


def kkt_residual(beta: ArrayLike, alpha: ArrayLike, X: ArrayLike) -> float:
    r"""Distance of :math:`\nabla\phi_\alpha(\beta)` from the row space of X, relative to its norm.

    It is 0 at the interpolator that minimizes the potential.

    Raises:
        InputError: If an ``alpha`` is not positive.
    """
    beta = np.asarray(beta, dtype=np.float64)
    slope = _slope(beta, np.log(_positive(alpha, len(beta))))
    return _outside(slope, np.asarray(X, dtype=np.float64))


def _slope(beta: Array, log_alpha: Array) -> Array:
    r""":math:`\operatorname{arcsinh}(\beta/(2\alpha^2))` from logarithms."""
    log_ratio = np.log(np.abs(beta), where=beta != 0.0, out=np.full_like(beta, -np.inf)) - 2.0 * log_alpha
    near = np.arcsinh(0.5 * np.exp(np.minimum(log_ratio, _FAR)))
    slope: Array = np.sign(beta) * np.where(log_ratio > _FAR, log_ratio, near)
    return slope


def _outside(z: Array, X: Array) -> float:
    inside = X.T @ np.linalg.lstsq(X.T, z, rcond=None)[0]
    return float(np.linalg.norm(z - inside) / np.linalg.norm(z))


def _positive(alpha: ArrayLike, d: int) -> Array:
    values = np.asarray(alpha, dtype=np.float64)
    if values.shape not in {(), (d,)} or not (values > 0).all() or not np.isfinite(values).all():
        raise InputError(f"alpha must be a positive number or {d} of them, got {alpha!r}.")
    return np.broadcast_to(values, (d,))


def minimum_l1(problem: Problem) -> Vector:
    """The interpolator of least l1 norm, by linear programming."""
    d = problem.d
    found = linprog(
        np.ones(2 * d),
        A_eq=np.hstack([problem.X, -problem.X]),
        b_eq=problem.y,
        bounds=(0, None),
        method="highs",
    )
    beta: Array = found.x[:d] - found.x[d:]
    return beta


def minimum_l2(problem: Problem) -> Vector:
    """The interpolator of least l2 norm."""
    beta: Array = np.linalg.lstsq(problem.X, problem.y, rcond=None)[0]
    return beta


def loss(X: ArrayLike, y: ArrayLike, beta: ArrayLike) -> float:
    r""":math:`\frac{1}{2n}\|X\beta - y\|^2`."""
    residual = np.asarray(X) @ np.asarray(beta) - np.asarray(y)
    return float(residual @ residual / (2.0 * len(residual)))
