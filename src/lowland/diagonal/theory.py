r"""What the implicit bias of diagonal linear networks predicts.

Gradient flow on :math:`L(u, v)` from :math:`w_\pm = \frac12(u \pm v) = \alpha` ends in the interpolator that
minimizes the hyperbolic entropy :math:`\phi_\alpha` (Woodworth et al., 2020). Climbs shrink :math:`\alpha` on
the way: by :math:`e^{-\rho\Delta}` (Andriushchenko & Flammarion, 2022, Theorem 1), where along the flow
exactly :math:`\rho\Delta = \int \rho\, g_S \odot g_S'\, dt`, averaged over groups, with the gradient
:math:`g_S'` at the perturbed weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.linalg import qr, solve_triangular
from scipy.optimize import linprog

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
    """What Theorem 1 of Andriushchenko & Flammarion (2022) says of a run of ``plan``, beside the run.

    Args:
        problem: The data.
        plan: What was run.
        result: What it did.

    Example:
        >>> from lowland.diagonal import Phase, Plan, Problem, compare
        >>> problem = Problem.of([[1.0, 0.5]], [1.0])
        >>> plan = Plan((Phase("1-sam", gamma=0.01, rho=0.05, steps=5000),), alpha=0.5)
        >>> found = compare(problem, plan, plan.run(problem))
        >>> found.distance < 1e-3, found.predicted.round(3)  # in proportion to the squared features
        (True, array([0.046, 0.011]))
    """
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

    The potential is that of Woodworth et al. (2020).

    Args:
        beta: Coefficients, shape ``(d,)``.
        alpha: Initialization in units of :math:`w_\pm`, positive: a number, or one per coefficient.

    Raises:
        InputError: If an ``alpha`` is not positive.

    Example:
        >>> from lowland.diagonal import potential
        >>> def ratio(alpha):
        ...     return potential([3.0, 4.0], alpha) / potential([5.0, 0.0], alpha)
        >>> round(ratio(1e-20), 1), round(ratio(1e3), 4)  # that of l1 norms, 7 / 5, and of squared l2 norms
        (1.4, 1.0)
    """
    beta = np.atleast_1d(np.asarray(beta, dtype=np.float64))
    s = _slope(beta, np.log(_positive(alpha, len(beta))))
    return float(np.sum(beta * (s - np.tanh(0.5 * s))))


def effective_alpha(u: ArrayLike, v: ArrayLike) -> Vector:
    r""":math:`\sqrt{|w_+ w_-|} = \frac12\sqrt{|u^2 - v^2|}`, which gradient flow conserves.

    It is the effective initialization of Andriushchenko & Flammarion (2022, Theorem 1), in units of
    :math:`w_\pm`.

    Args:
        u: Weights, shape ``(d,)``.
        v: The others.

    Returns:
        One for each coordinate.

    Example:
        >>> from lowland.diagonal import effective_alpha
        >>> effective_alpha([5.0, 2.0], [3.0, 0.0])
        array([2., 1.])
    """
    u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    alpha: Array = 0.5 * np.sqrt(np.abs(u - v)) * np.sqrt(np.abs(u + v))
    return alpha


def predicted_alpha(result: Result, alpha: ArrayLike) -> Vector:
    r""":math:`\alpha \odot e^{-\rho\Delta}` from the trajectory, for :math:`w_\pm = \alpha` at the start.

    It is what Andriushchenko & Flammarion (2022, Theorem 1) predict of :func:`effective_alpha`.

    Args:
        result: The run.
        alpha: Its initialization in units of :math:`w_\pm`: a number, or one per coordinate.

    Returns:
        One for each coordinate.

    Example:
        >>> from lowland.diagonal import Problem, effective_alpha, predicted_alpha, train
        >>> problem = Problem.of([[1.0, 0.5]], [1.0])
        >>> result = train(problem, "1-sam", gamma=0.01, alpha=0.5, rho=0.05, steps=5000)
        >>> seen = effective_alpha(result.u, result.v)  # u = alpha and v = 0 are w = alpha / 2
        >>> bool(abs(seen / predicted_alpha(result, 0.25) - 1.0).max() < 0.01)
        True
    """
    shrunk: Array = np.asarray(alpha, dtype=np.float64) * np.exp(-result.exponent)
    return shrunk


def minimum_potential(problem: Problem, alpha: ArrayLike) -> Vector:
    r"""The interpolator :math:`X\beta = y` that minimizes :math:`\phi_\alpha`, by its convex dual.

    With :math:`\beta(\nu) = 2\alpha^2 \sinh(X^\top \nu)`, the dual minimizes
    :math:`\sum_i 2\alpha_i^2 \cosh(x_i^\top \nu) - \langle \nu, y \rangle`: smooth, and in as many dimensions
    as examples. Where nothing interpolates, it is the minimizer among the coefficients of least squares.

    Args:
        problem: The data.
        alpha: Initialization in units of :math:`w_\pm`, positive: a number, or one per coefficient.

    Raises:
        InputError: If an ``alpha`` is not positive, or so large or small that the dual cannot be minimized.

    Example:
        >>> from lowland.diagonal import Problem, minimum_potential
        >>> problem = Problem.of([[1.0, 0.5]], [1.0])
        >>> [minimum_potential(problem, alpha).round(3) for alpha in (1e-100, 1e2)]  # the least l1, l2 norm
        [array([1., 0.]), array([0.8, 0.4])]
    """
    return _minimizer(problem, np.log(_positive(alpha, problem.d)))


def _minimizer(problem: Problem, log_alpha: Array) -> Array:
    r"""Of the potential, from logarithms: effective initializations may be too small for a number.

    Newton's method on the dual, its unknown :math:`s = X^\top \nu`.
    """
    rows, targets = _row_space(problem)
    unit = np.abs(targets).max(initial=0.0) or 1.0
    targets, log_square = targets / unit, 2.0 * log_alpha - np.log(unit)
    if log_square.max() > _LARGEST:
        power = log_square.max() / np.log(10.0)
        raise InputError(f"the square of alpha must be at most 1e300 times the targets, got 1e{power:.0f}.")
    tolerance = _ROUNDING * max(50.0, np.abs(log_square).max())
    s = np.zeros(problem.d)
    for _ in range(_MOST_STEPS):
        curvature = np.exp(log_square + np.logaddexp(s, -s))
        beta: Array = curvature * np.tanh(s)
        residual = targets - rows @ beta
        worst = np.abs(residual).max(initial=0.0)
        if worst <= tolerance * max(1.0, np.abs(beta).max()):
            return unit * beta
        s = s + _damped(_newton(rows, curvature + _FLOOR, residual), s)
    raise InputError(f"a minimizer must be found in {_MOST_STEPS} steps, got a residual of {worst:.1e}.")


_LARGEST = np.log(1e300)
_ROUNDING = 2e-15
"""A few last digits of 1. Those of s, which is as large as logarithms are, are shares of :math:`\beta`."""
_FLOOR = 1e-14
"""Of curvatures, where targets are 1: a coordinate below it would take the whole step for itself."""
_MOST_STEPS = 10_000
"""Dozens are taken where log α spans hundreds, thousands where it spans tens of thousands."""


def _row_space(problem: Problem) -> tuple[Array, Array]:
    """Orthonormal rows, and targets, of equations with the solutions (of least squares) of the problem's."""
    left, sizes, rows = np.linalg.svd(problem.X, full_matrices=False)
    rank = int(np.sum(sizes > sizes[0] * max(problem.X.shape) * np.finfo(np.float64).eps))
    targets: Array = (problem.y @ left[:, :rank]) / sizes[:rank]
    return rows[:rank], targets


def _newton(rows: Array, curvature: Array, residual: Array) -> Array:
    r"""The step of s: :math:`V^\top (V \operatorname{diag}(c) V^\top)^{-1} r`.

    Curvatures differ by a hundred orders of magnitude. Householder's factorization is accurate in each row of
    :math:`\operatorname{diag}(\sqrt c) V^\top` by itself if rows fall in size and columns are pivoted (Cox &
    Higham, 1998).
    """
    order = np.argsort(-curvature)
    root = np.sqrt(curvature[order])
    Q, R, pivots = qr(root[:, None] * rows.T[order], mode="economic", pivoting=True)
    step = np.empty_like(curvature)
    step[order] = Q @ solve_triangular(R, residual[pivots], trans=1) / root
    return step


def _damped(step: Array, s: Array) -> Array:
    r"""The part :math:`t = \log(1 + p)/p` of a Newton step :math:`q`, after which the dual is smaller.

    With :math:`p = \max_i(|s_i + q_i| - |s_i|)` no curvature grows by more than :math:`e^{tp}` on the way, so
    that the dual falls by at least :math:`\lambda^2(t - (e^{tp} - tp - 1)/p^2)`, with :math:`\lambda^2` the
    step's square in the dual's Hessian; and that is most at this :math:`t`. No :math:`|s_i|` grows by more
    than :math:`\log(1 + p)`: nothing overflows, and nothing need be tried and rejected.
    """
    growth = np.max(np.abs(s + step) - np.abs(s))
    part = np.log1p(growth) / growth if growth > 0.0 else 1.0
    damped: Array = part * step
    return damped


def kkt_residual(beta: ArrayLike, alpha: ArrayLike, X: ArrayLike) -> float:
    r"""Distance of :math:`\nabla\phi_\alpha(\beta)` from the row space of X, relative to its norm.

    It is 0 at the interpolator that minimizes the potential, and at 0.

    Args:
        beta: Coefficients, shape ``(d,)``.
        alpha: Initialization in units of :math:`w_\pm`, positive: a number, or one per coefficient.
        X: Training inputs, shape ``(n, d)``.

    Returns:
        The distance: from 0, inside the row space, to 1, orthogonal to it.

    Raises:
        InputError: If an ``alpha`` is not positive.

    Example:
        >>> from lowland.diagonal import Problem, kkt_residual, minimum_potential
        >>> problem = Problem.of([[1.0, 0.5]], [1.0])
        >>> beta = minimum_potential(problem, 0.1)
        >>> kkt_residual(beta, 0.1, problem.X) < 1e-9, kkt_residual([0.0, 2.0], 0.1, problem.X) > 0.1
        (True, True)
    """
    beta = np.asarray(beta, dtype=np.float64)
    slope = _slope(beta, np.log(_positive(alpha, len(beta))))
    return _outside(slope, np.asarray(X, dtype=np.float64))


_FAR = 30.0
"""From here on, arcsinh(r / 2) is log r to the last digit."""


def _slope(beta: Array, log_alpha: Array) -> Array:
    r""":math:`\operatorname{arcsinh}(\beta/(2\alpha^2))` from logarithms."""
    log_ratio = np.log(np.abs(beta), where=beta != 0.0, out=np.full_like(beta, -np.inf)) - 2.0 * log_alpha
    near = np.arcsinh(0.5 * np.exp(np.minimum(log_ratio, _FAR)))
    slope: Array = np.sign(beta) * np.where(log_ratio > _FAR, log_ratio, near)
    return slope


def _outside(z: Array, X: Array) -> float:
    inside = X.T @ np.linalg.lstsq(X.T, z, rcond=None)[0]
    return float(np.linalg.norm(z - inside) / (np.linalg.norm(z) or 1.0))


def _positive(alpha: ArrayLike, d: int) -> Array:
    values = np.asarray(alpha, dtype=np.float64)
    if values.shape not in {(), (d,)} or not (values > 0).all() or not np.isfinite(values).all():
        raise InputError(f"alpha must be a positive number or {d} of them, got {alpha!r}.")
    return np.broadcast_to(values, (d,))


def minimum_l1(problem: Problem) -> Vector:
    """The interpolator of least l1 norm, by linear programming.

    Args:
        problem: The data.

    Example:
        >>> from lowland.diagonal import Problem, minimum_l1
        >>> print(minimum_l1(Problem.of([[1.0, 0.5]], [1.0])).round(6) + 0.0)
        [1. 0.]
    """
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
    """The interpolator of least l2 norm.

    Args:
        problem: The data.

    Example:
        >>> from lowland.diagonal import Problem, minimum_l2
        >>> print(minimum_l2(Problem.of([[1.0, 0.5]], [1.0])).round(6) + 0.0)
        [0.8 0.4]
    """
    beta: Array = np.linalg.lstsq(problem.X, problem.y, rcond=None)[0]
    return beta


def loss(X: ArrayLike, y: ArrayLike, beta: ArrayLike) -> float:
    r"""The loss :math:`\frac{1}{2n}\|X\beta - y\|^2`.

    Args:
        X: Inputs, shape ``(n, d)``.
        y: Targets, shape ``(n,)``.
        beta: Coefficients, shape ``(d,)``.

    Example:
        >>> from lowland.diagonal import loss
        >>> loss([[1.0, 0.0], [0.0, 1.0]], [1.0, 2.0], [1.0, 0.0])
        1.0
    """
    residual = np.asarray(X) @ np.asarray(beta) - np.asarray(y)
    return float(residual @ residual / (2.0 * len(residual)))
