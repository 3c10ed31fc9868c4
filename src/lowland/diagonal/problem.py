"""Sparse linear regression, the data of diagonal linear networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from lowland.errors import InputError, one_of

Stream = Literal["legacy", "modern"]

Array = np.ndarray


@dataclass(frozen=True)
class Problem:
    r"""Training data of :math:`L(\beta) = \frac{1}{2n}\|X\beta - y\|^2`, with test data of the same loss.

    Attributes:
        X: Training inputs.
        y: Training targets.
        X_test: Test inputs; no rows without a test set.
        y_test: Test targets.
        theta_star: Coefficients that made the targets; ``None`` for data of one's own.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    X_test: Float[Array, "n_test d"]
    y_test: Float[Array, " n_test"]
    theta_star: Float[Array, " d"] | None = None

    @classmethod
    def of(
        cls,
        X: ArrayLike,
        y: ArrayLike,
        *,
        X_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
    ) -> Problem:
        """The problem of data of one's own.

        Args:
            X: Training inputs, a row per example.
            y: Training targets.
            X_test: Test inputs.
            y_test: Test targets; given if those are.

        Raises:
            InputError: If the shapes do not match or a number is not finite.
        """
        X, y = _matrix("X", X), _vector("y", y)
        if (X_test is None) != (y_test is None):
            raise InputError("X_test and y_test must be given together, got one of them.")
        inputs = np.empty((0, X.shape[1])) if X_test is None else _matrix("X_test", X_test)
        targets = np.empty(0) if y_test is None else _vector("y_test", y_test)
        if len(X) != len(y) or len(inputs) != len(targets):
            counts = f"{len(X)} and {len(y)}, {len(inputs)} and {len(targets)}"
            raise InputError(f"inputs and targets must be as many, got {counts}.")
        if inputs.shape[1] != X.shape[1]:
            raise InputError(f"X_test must have {X.shape[1]} columns as X, got {inputs.shape[1]}.")
        return cls(X, y, inputs, targets)

    @property
    def n(self) -> int:
        """Number of training examples."""
        return len(self.X)

    @property
    def d(self) -> int:
        """Number of features."""
        return int(self.X.shape[1])

    @property
    def support(self) -> Bool[Array, " d"] | None:
        """Which coefficients are not zero."""
        return None if self.theta_star is None else self.theta_star != 0.0

    @cached_property
    def condensed_test(self) -> tuple[Float[Array, "rows d"], Float[Array, " rows"]]:
        r"""Test data of at most d + 1 rows whose loss is that of all, to rounding, for every :math:`\beta`.

        With the triangle R of a QR decomposition of the inputs beside the targets,
        :math:`\|X\beta - y\| = \|R_{:d}\,\beta - R_d\|`, without the cancellation of a quadratic form.
        """
        rows = len(self.y_test)
        if rows <= self.d + 1:
            return self.X_test, self.y_test
        triangle = np.linalg.qr(np.column_stack([self.X_test, self.y_test]), mode="r")
        triangle *= np.sqrt(len(triangle) / rows)
        return np.ascontiguousarray(triangle[:, :-1]), np.ascontiguousarray(triangle[:, -1])


def sparse_regression(
    *,
    seed: int = 0,
    n: int = 20,
    d: int = 30,
    sparsity: int = 3,
    n_test: int = 1000,
    scaling: float = 0.0,
    label_noise: float = 0.0,
    stream: Stream = "legacy",
) -> Problem:
    r"""Gaussian inputs, and targets of a sparse vector with positive entries and norm 1.

    With the defaults these are the data of the original's notebook ``diag_nets.ipynb`` (Andriushchenko &
    Flammarion, 2022), to the last bit.

    Args:
        seed: Of all draws.
        n: Number of training examples.
        d: Number of features.
        sparsity: Number of coefficients that are not zero, the first ones.
        n_test: Number of test examples.
        scaling: Power :math:`a` of feature scales: feature j is multiplied by :math:`(j + 1)^{-a}`.
        label_noise: Standard deviation of Gaussian noise on the training targets.
        stream: ``"legacy"`` draws from ``numpy.random.RandomState``, ``"modern"`` from
            ``numpy.random.default_rng``.

    Returns:
        The problem, with the coefficients that made it.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> from lowland.diagonal import sparse_regression
        >>> problem = sparse_regression()
        >>> problem.X.shape, int(problem.support.sum()), round(float((problem.theta_star**2).sum()), 6)
        ((20, 30), 3, 1.0)
    """
    one_of("stream", stream, ("legacy", "modern"))
    for name, value, least in (("n", n, 1), ("d", d, 1), ("sparsity", sparsity, 1), ("n_test", n_test, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}.")
    if sparsity > d:
        raise InputError(f"sparsity must be at most d = {d}, got {sparsity}.")
    if not label_noise >= 0.0:
        raise InputError(f"label_noise must be non-negative, got {label_noise}.")
    draw = _normal(seed, stream)
    scales = np.arange(1.0, d + 1.0) ** -scaling
    X, X_test = draw((n, d)) * scales, draw((n_test, d)) * scales
    theta_star = np.abs(draw((d,)))
    theta_star[sparsity:] = 0.0
    theta_star /= np.linalg.norm(theta_star)
    noise = label_noise * draw((n,)) if label_noise > 0.0 else 0.0
    return Problem(X, X @ theta_star + noise, X_test, X_test @ theta_star, theta_star)


def _normal(seed: int, stream: Stream):  # type: ignore[no-untyped-def]
    generator = np.random.RandomState(seed) if stream == "legacy" else np.random.default_rng(seed)
    return generator.standard_normal


def _matrix(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} must be a matrix with rows and columns, got shape {array.shape}.")
    return _finite(name, array)


def _vector(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"{name} must be a vector, got shape {array.shape}.")
    return _finite(name, array)


def _finite(name: str, array: Array) -> Array:
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite, got NaN or infinity.")
    return np.ascontiguousarray(array)
