"""One-hidden-layer ReLU networks, and how many pieces they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lowland.errors import InputError
from lowland.relu.problem import Array, Regression

BIN, ACTIVE = 0.05, 0.1
"""Kinks nearer than this are one; smaller changes of slope are none."""


@dataclass(frozen=True)
class Network:
    r""":math:`f(x) = \sum_h a_h \max(\langle w_h, x\rangle + b_h, 0)`.

    Attributes:
        w: Hidden weights.
        b: Hidden biases.
        a: Output weights.

    Example:
        >>> import numpy as np
        >>> from lowland.relu import Network
        >>> absolute = Network(np.array([[1.0, -1.0]]), np.zeros(2), np.ones(2))  # |x| of two neurons
        >>> absolute(np.array([[-3.0], [2.0]])), absolute.slope_variation(-1.0, 1.0)
        (array([3., 2.]), 2.0)
    """

    w: Float[Array, "d width"]
    b: Float[Array, " width"]
    a: Float[Array, " width"]

    @classmethod
    def initialized(cls, *, width: int = 100, d: int = 1, scale: float = 1.0, seed: int = 0) -> Network:
        r"""The original's: :math:`w = \pm 2.5`, :math:`b \sim 2.5\,N(0, 1)`, :math:`a \sim 4\,N(0, 1)`.

        It follows Blanc et al. (2020). With several inputs, w has length 2.5 and a random direction.
        All are multiplied with ``scale``.

        Args:
            width: Number of neurons.
            d: Number of inputs.
            scale: What all weights are multiplied with.
            seed: Of the draws.

        Raises:
            InputError: If a number is not positive.
        """
        if width < 1 or d < 1 or not scale > 0.0:
            raise InputError(f"width, d and scale must be positive, got {width}, {d} and {scale}.")
        draw = np.random.default_rng(seed)
        w = draw.standard_normal((d, width))
        w *= 2.5 / np.linalg.norm(w, axis=0)
        b, a = 2.5 * draw.standard_normal(width), 4.0 * draw.standard_normal(width)
        return cls(scale * w, scale * b, scale * a)

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The outputs for the inputs ``x``."""
        outputs: Array = self.hidden(x) @ self.a
        return outputs

    def hidden(self, x: Float[Array, "n d"]) -> Float[Array, "n width"]:
        """The activations for the inputs ``x``."""
        activations: Array = np.maximum(x @ self.w + self.b, 0.0)
        return activations

    def kinks(self) -> tuple[Float[Array, " kinks"], Float[Array, " kinks"]]:
        """Where the slope changes, rising, and by how much; neurons that share a kink are added.

        Raises:
            InputError: If the network has several inputs.
        """
        if len(self.w) != 1:
            raise InputError(f"kinks need a network of one input, got {len(self.w)}.")
        bent = self.w[0] != 0.0
        w, b, a = self.w[0, bent], self.b[bent], self.a[bent]
        places, neuron = np.unique(-b / w, return_inverse=True)
        return places, np.bincount(neuron, weights=a * np.abs(w), minlength=len(places))

    def slope_variation(self, low: float, high: float) -> float:
        """The total variation of the slope between ``low`` and ``high``.

        Raises:
            InputError: If the network has several inputs.
        """
        places, changes = self.kinks()
        return float(np.abs(changes[(places > low) & (places < high)]).sum())

    def active_kinks(self, low: float, high: float) -> int:
        """How many kinks are between ``low`` and ``high``.

        It is the number of bins of width 0.05 in which the slope changes by more than 0.1.

        Raises:
            InputError: If the network has several inputs.
        """
        places, changes = self.kinks()
        inside = (places > low) & (places < high)
        bins = ((places[inside] - low) / BIN).astype(np.int64)
        return int((np.abs(np.bincount(bins, weights=changes[inside])) > ACTIVE).sum())

    def norms(self) -> tuple[float, float]:
        """The l2 norms of ``a`` and ``w``."""
        return float(np.linalg.norm(self.a)), float(np.linalg.norm(self.w))

    def features(self, problem: Regression, *, tolerance: float = 1e-3) -> tuple[int, int, int]:
        """What the hidden activations on the training inputs are like.

        Args:
            problem: The data.
            tolerance: What counts as zero, relative to the largest: singular value, norm of a neuron's
                activations, or one minus the cosine between those of two neurons.

        Returns:
            Their rank, the number of neurons active there, and that of distinct ones.
        """
        activations = self.hidden(problem.x)
        values = np.linalg.svd(activations, compute_uv=False)
        if not values[0] > 0.0:
            return 0, 0, 0
        rank = int((values > tolerance * values[0]).sum())
        norms = np.linalg.norm(activations, axis=0)
        alive = norms > tolerance * norms.max()
        return rank, int(alive.sum()), _distinct((activations[:, alive] / norms[alive]).T, tolerance)


def interpolant_variation(problem: Regression) -> float:
    """The total variation of the slope of the lines from point to point, which no interpolant undercuts.

    Args:
        problem: The data, of one input.

    Example:
        >>> from lowland.relu import Regression, interpolant_variation
        >>> interpolant_variation(Regression.of([-1.0, 0.0, 2.0], [1.0, 0.0, 2.0]))  # slopes -1 and 1
        2.0
    """
    order = np.argsort(problem.x[:, 0])
    slopes = np.diff(problem.y[order]) / np.diff(problem.x[order, 0])
    return float(np.abs(np.diff(slopes)).sum())


def _distinct(directions: Array, tolerance: float) -> int:
    kept: list[Array] = []
    for direction in directions:
        if all(direction @ other < 1.0 - tolerance for other in kept):
            kept.append(direction)
    return len(kept)
