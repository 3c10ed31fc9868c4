"""Regression data of one-hidden-layer ReLU networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lowland.errors import InputError, one_of

Array = np.ndarray
Target = Literal["maennel", "sine", "absolute", "step"]
TARGETS = ("maennel", "sine", "absolute", "step")


@dataclass(frozen=True)
class Regression:
    """Inputs and targets, with those of a test set or none.

    Attributes:
        x: Training inputs.
        y: Training targets.
        x_test: Test inputs; no rows without a test set.
        y_test: Test targets.
    """

    x: Float[Array, "n d"]
    y: Float[Array, " n"]
    x_test: Float[Array, "n_test d"]
    y_test: Float[Array, " n_test"]

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Regression:
        """The problem of data of one's own.

        Args:
            x: Inputs, a row per example, or a vector if there is one input.
            y: A target per example.

        Raises:
            InputError: If the shapes do not match or a number is not finite.
        """
        inputs, targets = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        inputs = inputs[:, None] if inputs.ndim == 1 else inputs
        if inputs.ndim != 2 or targets.shape != inputs.shape[:1] or inputs.size == 0:
            shapes = f"{np.shape(x)} and {np.shape(y)}"
            raise InputError(f"x must have a row, and y a number, per example; got shapes {shapes}.")
        if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
            raise InputError("x and y must be finite, got NaN or infinity.")
        return cls(inputs, targets, np.empty((0, inputs.shape[1])), np.empty(0))

    @property
    def n(self) -> int:
        """Number of training examples."""
        return len(self.x)

    @property
    def d(self) -> int:
        """Number of inputs."""
        return int(self.x.shape[1])


def on_the_line(
    target: Target = "maennel", *, points: int = 12, noise: float = 0.0, seed: int = 0
) -> Regression:
    """One input in [-1.305, 1.445] and one of several targets.

    ``"maennel"`` is the 12 points of the original's notebook ``1d_nn.ipynb`` (Andriushchenko & Flammarion,
    2022), which are those of Maennel et al. (2018).

    Args:
        target: ``"maennel"``, or a function: ``"sine"``, ``"absolute"`` (a single kink) or ``"step"``.
        points: Number of points, evenly spaced; 12 for ``"maennel"``.
        noise: Standard deviation of Gaussian noise on the targets.
        seed: Of the noise.

    Returns:
        The problem, without test data.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> from lowland.relu import on_the_line
        >>> problem = on_the_line("absolute", points=3)
        >>> problem.x[:, 0].round(3), problem.y.round(3)
        (array([-1.305,  0.07 ,  1.445]), array([1.375, 0.   , 1.375]))
    """
    one_of("target", target, TARGETS)
    if target == "maennel" and points != 12:
        raise InputError(f"points must be 12 for the target maennel, got {points}.")
    if points < 2 or not noise >= 0.0:
        raise InputError(f"points must be at least 2 and noise non-negative, got {points} and {noise}.")
    x = np.linspace(-5.5, 5.5, points) / 4 + 0.07
    y = _targets(target, x)
    return Regression.of(x, y + noise * np.random.default_rng(seed).standard_normal(points))


def _targets(target: Target, x: Array) -> Array:
    if target == "maennel":
        return 0.345 + np.array([-2, 1.5, 0, 0, 2, 1, 0, -1, 0, 1, 2, -1])
    if target == "sine":
        return np.sin(2 * np.pi * x)
    return np.abs(x - 0.07) if target == "absolute" else np.sign(x - 0.07)


def teacher_student(
    *, n: int = 20, d: int = 3, teachers: int = 3, n_test: int = 1000, seed: int = 0
) -> Regression:
    """Gaussian inputs, and targets of a random ReLU network with ``teachers`` neurons on the unit sphere.

    The sizes are those of "Sharpness-Aware Minimization Leads to Low-Rank Features" (Andriushchenko et al.,
    2023, section 5); the teacher's weights are drawn as described here, since theirs are not known to us.

    Args:
        n: Number of training examples.
        d: Number of inputs.
        teachers: Number of the network's neurons.
        n_test: Number of test examples.
        seed: Of all draws.

    Returns:
        The problem, with test data of the same network.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> from lowland.relu import teacher_student
        >>> problem = teacher_student(n=20, d=3)
        >>> problem.n, problem.d, problem.x_test.shape
        (20, 3, (1000, 3))
    """
    for name, value, least in (("n", n, 1), ("d", d, 1), ("teachers", teachers, 1), ("n_test", n_test, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}.")
    draw = np.random.default_rng(seed)
    w = draw.standard_normal((d, teachers))
    w /= np.linalg.norm(w, axis=0)
    a = np.where(draw.random(teachers) < 0.5, -1.0, 1.0)
    x, x_test = draw.standard_normal((n, d)), draw.standard_normal((n_test, d))
    return Regression(x, np.maximum(x @ w, 0.0) @ a, x_test, np.maximum(x_test @ w, 0.0) @ a)
