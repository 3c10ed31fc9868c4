r"""Theorem 2: unnormalized m-SAM converges, measured against its bound.

For a mean :math:`L` of :math:`\beta`-smooth losses whose gradients have variance at most :math:`\sigma^2`,
groups of m examples, and the step

.. math::
    w_{t+1} = w_t - \gamma_t \nabla L_{I_t}\bigl(w_t + \rho_t \nabla L_{I_t}(w_t)\bigr), \qquad |I_t| = m,

Andriushchenko & Flammarion (2022, Theorem 2) bound the mean squared gradient of all iterates, and under the
Polyak-Lojasiewicz inequality :math:`\frac12\|\nabla L\|^2 \ge \mu(L - L_*)` the loss of the last one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from lowland.diagonal.dynamics import logged_iterations
from lowland.diagonal.problem import Array, Problem
from lowland.errors import InputError
from lowland.runs.threads import end_if_given_up

_ZERO = 1e-9
"""Eigenvalues below this share of the largest are zero."""


@dataclass(frozen=True)
class Quadratics:
    r"""Losses :math:`\ell_i(w) = \frac12 w^\top H_i w - \langle b_i, w\rangle + c_i`, their constants known.

    Their mean satisfies the Polyak-Lojasiewicz inequality, also where it is not strongly convex.

    Attributes:
        H: Hessians, symmetric without negative eigenvalues.
        b: Minus the gradients at zero.
        c: Losses at zero.

    Example:
        >>> import numpy as np
        >>> from lowland.diagonal import Quadratics
        >>> problem = Quadratics(np.diag([1.0, 4.0])[None], np.array([[1.0, 0.0]]), np.array([0.5]))
        >>> problem.beta, problem.mu, problem.minimum  # the minimum is at (1, 0)
        (4.0, 1.0, 0.0)
        >>> problem.gradient(np.array([[1.0, 1.0]]))
        array([[0., 4.]])
    """

    H: Float[Array, "n d d"]
    b: Float[Array, "n d"]
    c: Float[Array, " n"]

    @classmethod
    def noisy(
        cls,
        eigenvalues: Sequence[float] | Float[Array, " d"],
        *,
        n: int = 50,
        noise: float = 1.0,
        seed: int = 0,
    ) -> Quadratics:
        r"""One Hessian for all, and minimizers that scatter: the variance is the same at every w.

        Args:
            eigenvalues: Of the Hessian; some may be zero.
            n: Number of losses.
            noise: Standard deviation of the minimizers, per coordinate.
            seed: Of the minimizers and of the directions of the eigenvalues.

        Returns:
            The losses.

        Raises:
            InputError: If a number is out of its range.
        """
        values = np.asarray(eigenvalues, dtype=np.float64)
        if values.ndim != 1 or len(values) == 0 or not (values >= 0).all() or not values.max() > 0:
            raise InputError(f"eigenvalues must be non-negative, one of them positive, got {eigenvalues}.")
        if n < 1 or not noise >= 0:
            raise InputError(f"n must be positive and noise non-negative, got {n} and {noise}.")
        draw = np.random.default_rng(seed)
        basis = np.linalg.qr(draw.standard_normal((len(values), len(values))))[0]
        hessian = (basis * values) @ basis.T
        centers = noise * draw.standard_normal((n, len(values)))
        b = centers @ hessian
        return cls(np.broadcast_to(hessian, (n, *hessian.shape)), b, 0.5 * np.sum(b * centers, axis=1))

    @classmethod
    def least_squares(cls, problem: Problem) -> Quadratics:
        r"""Linear regression, :math:`\ell_i(w) = \frac12(\langle x_i, w\rangle - y_i)^2`.

        Args:
            problem: The data.

        Returns:
            A loss for each training example.
        """
        X, y = problem.X, problem.y
        return cls(X[:, :, None] * X[:, None, :], y[:, None] * X, 0.5 * y * y)

    @cached_property
    def mean(self) -> tuple[Array, Array, float]:
        """Hessian, minus the gradient at zero, and value at zero of the mean loss."""
        return self.H.mean(axis=0), self.b.mean(axis=0), float(self.c.mean())

    @cached_property
    def beta(self) -> float:
        """Smoothness of the losses, each."""
        return float(np.linalg.eigvalsh(self.H).max())

    @cached_property
    def mu(self) -> float:
        """Constant of the Polyak-Lojasiewicz inequality: the mean Hessian's least eigenvalue above zero."""
        values = np.linalg.eigvalsh(self.mean[0])
        return float(values[values > _ZERO * values.max()].min())

    @cached_property
    def minimum(self) -> float:
        """Least mean loss."""
        hessian, b, c = self.mean
        return c - 0.5 * float(b @ np.linalg.lstsq(hessian, b, rcond=_ZERO)[0])

    def loss(self, w: Float[Array, "*runs d"]) -> Float[Array, "*runs"]:
        """The mean loss at each ``w``."""
        hessian, b, c = self.mean
        value: Array = 0.5 * np.sum((w @ hessian) * w, axis=-1) - w @ b + c
        return value

    def gradient(self, w: Float[Array, "*runs d"]) -> Float[Array, "*runs d"]:
        """The gradient of the mean loss at each ``w``."""
        slope: Array = w @ self.mean[0] - self.mean[1]
        return slope

    def group_gradient(
        self, w: Float[Array, "runs d"], group: Int[Array, "runs m"]
    ) -> Float[Array, "runs d"]:
        """The gradient of each run, at its own ``w``, of the mean over its own ``group``."""
        slope: Array = np.einsum("rmij,rj->ri", self.H[group], w) / group.shape[1] - self.b[group].mean(
            axis=1
        )
        return slope

    def variance(self, w: Float[Array, "runs d"]) -> Float[Array, " runs"]:
        r"""The variance :math:`\frac1n \sum_i \|\nabla\ell_i(w) - \nabla L(w)\|^2` at each ``w``."""
        slopes = np.einsum("nij,rj->rni", self.H, w) - self.b
        spread: Array = np.square(slopes - slopes.mean(axis=1, keepdims=True)).sum(axis=2).mean(axis=1)
        return spread


@dataclass(frozen=True)
class Convergence:
    """What was measured, and what the theorem allows.

    Attributes:
        steps: Number of steps T of each entry.
        measured: Mean over runs.
        error: Its standard error over runs.
        bound: The theorem's right-hand side, with the variance seen along the iterates.
        variance: That variance, the largest over all iterates and runs that were looked at.
    """

    steps: Int[Array, " entries"]
    measured: Float[Array, " entries"]
    error: Float[Array, " entries"]
    bound: Float[Array, " entries"]
    variance: float


def loss_gap(
    problem: Quadratics, *, steps: int = 10_000, m: int = 1, runs: int = 20, seed: int = 0
) -> Convergence:
    r""":math:`E[L(w_T)] - L_*` for T up to ``steps``, under its bound.

    The step sizes are the theorem's, :math:`\gamma_t = \min\{(8t+4)/(3\mu(t+1)^2), 1/(2\beta)\}` and
    :math:`\rho_t = \sqrt{\gamma_t/\beta}`, and the bound is
    :math:`3\beta^2(L(w_0)-L_*)/(\mu^2T^2) + 22\beta\sigma^2/(\mu^2 m T)`.

    The theorem is the second part of Theorem 2 of Andriushchenko & Flammarion (2022).

    Args:
        problem: What is minimized, from a random start on the unit sphere around zero.
        steps: Largest T.
        m: Examples in a group, drawn with replacement.
        runs: Independent runs whose mean stands for the expectation.
        seed: Of starts and groups.

    Returns:
        The gap beside its bound, for each T that is logged.

    Raises:
        InputError: If a number is not positive.

    Example:
        >>> from lowland.diagonal import Quadratics, loss_gap
        >>> found = loss_gap(Quadratics.noisy([1.0, 2.0, 0.0]), steps=200, m=4)
        >>> int(found.steps[-1]), bool((found.measured <= found.bound).all())
        (200, True)
    """
    beta, mu = problem.beta, problem.mu

    def sizes(t: int) -> tuple[float, float]:
        gamma = min((8 * t + 4) / (3 * mu * (t + 1) ** 2), 1 / (2 * beta))
        return gamma, (gamma / beta) ** 0.5

    _require_counts(steps=steps, m=m, runs=runs)
    logged = logged_iterations(steps)
    start, walk = _walk(problem, sizes, m, runs, seed)
    gaps, variance, at = np.empty((len(logged), runs)), problem.variance(start).max(), 0
    for step in range(steps):
        w = walk(step)
        if step == logged[at]:
            gaps[at] = problem.loss(w) - problem.minimum
            variance = max(variance, problem.variance(w).max())
            at += 1
    T = logged + 1.0
    first = problem.loss(start).mean() - problem.minimum
    bound = 3 * beta**2 * first / (mu * T) ** 2 + 22 * beta * variance / (mu**2 * m * T)
    return Convergence(logged + 1, gaps.mean(axis=1), _standard_error(gaps), bound, float(variance))


def mean_square_gradient(
    problem: Quadratics,
    *,
    steps: Sequence[int] = (10, 30, 100, 300, 1_000, 3_000),
    m: int = 1,
    runs: int = 20,
    seed: int = 0,
) -> Convergence:
    r""":math:`\frac1T E\sum_{t<T}\|\nabla L(w_t)\|^2` for each T in ``steps``, under its bound.

    Each T has its own runs, of step sizes :math:`\gamma = 1/(\sqrt T\beta)` and
    :math:`\rho = 1/(T^{1/4}\beta)`; the bound is :math:`4\beta(L(w_0)-L_*)/\sqrt T + 8\sigma^2/(m\sqrt T)`.

    It is the first part of Theorem 2 of Andriushchenko & Flammarion (2022).

    Args:
        problem: What is minimized.
        steps: The T.
        m: Examples in a group, drawn with replacement.
        runs: Independent runs whose mean stands for the expectation.
        seed: Of starts and groups.

    Returns:
        The mean beside its bound, for each T.

    Raises:
        InputError: If a number is not positive.

    Example:
        >>> from lowland.diagonal import Quadratics, mean_square_gradient
        >>> found = mean_square_gradient(Quadratics.noisy([1.0, 2.0, 0.0]), steps=(10, 100))
        >>> found.steps, bool((found.measured <= found.bound).all())
        (array([ 10, 100]), True)
    """
    _require_counts(steps=min(steps, default=0), m=m, runs=runs)
    beta = problem.beta
    sums, variance = np.zeros((len(steps), runs)), 0.0
    for row, T in zip(sums, steps, strict=True):
        sizes = (T**-0.5 / beta, T**-0.25 / beta)
        start, walk = _walk(problem, functools.partial(_constant, sizes), m, runs, seed)
        w = start
        for step in range(T):
            row += np.square(problem.gradient(w)).sum(axis=1) / T
            variance = max(variance, problem.variance(w).max())
            w = walk(step)
    first = problem.loss(start).mean() - problem.minimum
    bound = (4 * beta * first + 8 * variance / m) / np.sqrt(steps)
    return Convergence(np.array(steps), sums.mean(axis=1), _standard_error(sums), bound, float(variance))


def _constant(sizes: tuple[float, float], _: int) -> tuple[float, float]:
    return sizes


def _walk(
    problem: Quadratics, sizes: Callable[[int], tuple[float, float]], m: int, runs: int, seed: int
) -> tuple[Array, Callable[[int], Array]]:
    """Starts of all runs, and a function that takes one step with all of them and returns where they are."""
    n, d = problem.b.shape
    draw = np.random.default_rng(seed)
    start = draw.standard_normal((runs, d))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    w = start.copy()

    def walk(step: int) -> Array:
        nonlocal w
        end_if_given_up()
        gamma, rho = sizes(step)
        group = draw.integers(n, size=(runs, m))
        climbed = w + rho * problem.group_gradient(w, group)
        w = w - gamma * problem.group_gradient(climbed, group)
        return w

    return start, walk


def _standard_error(values: Array) -> Array:
    runs = values.shape[1]
    spread: Array = values.std(axis=1, ddof=1) / runs**0.5 if runs > 1 else np.full(len(values), np.nan)
    return spread


def _require_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be positive, got {value}.")
