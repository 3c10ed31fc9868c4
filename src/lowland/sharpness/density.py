"""The spectral density of the Hessian and of the Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.linalg import eigh_tridiagonal
from torch import nn

from lowland.errors import InputError
from lowland.sam.norm import l2_norm
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.curved import GaussNewton, matrix_of
from lowland.sharpness.objective import Batch, Loss, Params
from lowland.sharpness.products import Matrix

Array = np.ndarray


@dataclass(frozen=True)
class SpectralDensity:
    """Eigenvalues' density from Lanczos runs: each run's nodes are eigenvalues with weights that sum to 1.

    Attributes:
        nodes: Ritz values.
        weights: Their weights.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
    """

    nodes: Float[Array, "runs steps"]
    weights: Float[Array, "runs steps"]
    examples: int
    products: int

    def on(self, grid: ArrayLike, *, width: float) -> Float[Array, " grid"]:
        """The density at ``grid``, each node a Gaussian of standard deviation ``width``.

        Args:
            grid: Where.
            width: That deviation, positive.

        Raises:
            InputError: If ``width`` is not positive.
        """
        if not width > 0.0:
            raise InputError(f"width must be positive, got {width}.")
        away = (np.asarray(grid, dtype=np.float64)[:, None, None] - self.nodes) / width
        bumps = np.exp(-0.5 * away**2) / (width * np.sqrt(2.0 * np.pi))
        density: Array = (bumps * self.weights).sum(axis=2).mean(axis=1)
        return density

    def row(self) -> dict[str, Any]:
        """Its mean and its size, flat, for a line of JSON.

        Returns:
            Mean and root mean square of the eigenvalues, and what they were computed from.
        """
        return {
            "measure": "spectral density",
            "value": self.moment(1),
            "root_mean_square": float(np.sqrt(max(self.moment(2), 0.0))),
            "examples": self.examples,
            "matrix_products": self.products,
        }

    def moment(self, power: int) -> float:
        """The mean of the eigenvalues to the ``power``."""
        return float((self.weights * self.nodes**power).sum(axis=1).mean())


def spectral_density(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    *,
    steps: int = 80,
    runs: int = 4,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> SpectralDensity:
    """The density of the Hessian's eigenvalues by stochastic Lanczos quadrature (Ghorbani et al., 2019).

    A run holds three vectors: none is orthogonalized against all before it, which repeats some nodes and
    shares their weights out, and leaves the density what it is (Chen et al., 2021).

    Args:
        loss: As for :func:`hessian_eigenvalues`, and so are ``params``, ``batch``, ``dtype``, ``reduction``
            and ``module``.
        params: The parameters.
        batch: The examples.
        steps: Lanczos steps of a run, at most the weights.
        runs: Random first vectors.
        dtype: Type of the vectors.
        seed: Of the first ones.
        reduction: Whether the loss is a mean or a sum.
        module: The module that ``loss`` runs.

    Raises:
        InputError: If a number is not positive, or the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import spectral_density
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 2)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> batch = (torch.tensor([[3.0, 1.0, 2.0]]),)
        >>> found = spectral_density(loss, w, batch)
        >>> [round(float(node), 4) for node in found.nodes[0]]  # with few weights these are the eigenvalues
        [1.0, 2.0, 3.0]
    """
    for name, number in (("steps", steps), ("runs", runs)):
        if number < 1:
            raise InputError(f"{name} must be positive, got {number}.")
    with matrix_of(loss, params, batch, module, reduction, dtype) as matrix:
        generator = torch.Generator().manual_seed(seed)
        found = [_quadrature(matrix, min(steps, matrix.size), generator) for _ in range(runs)]
        nodes, weights = (np.stack(part) for part in zip(*found, strict=True))
        return SpectralDensity(nodes, weights, matrix.target.examples, matrix.count)


def _quadrature(matrix: Matrix, steps: int, generator: torch.Generator) -> tuple[Array, Array]:
    """Nodes and weights of one Lanczos run; a run that has seen all there is repeats its last node."""
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    v = matrix.drawn(generator)
    v /= l2_norm([v])
    before, w, least = torch.zeros_like(v), torch.empty_like(v), 10.0 * torch.finfo(matrix.dtype).eps
    scale, taken = 1e-300, steps
    for i in range(steps):
        w = matrix.product(v, w)
        w.sub_(before, alpha=beside[i - 1] if i else 0.0)
        diagonal[i] = float(torch.dot(v, w))
        w.sub_(v, alpha=diagonal[i])
        beside[i] = l2_norm([w]).item()
        scale = max(scale, abs(diagonal[i]), beside[i])
        if beside[i] <= least * scale:
            taken = i + 1
            break
        before, v, w = v, w.div_(beside[i]), before
    nodes, vectors = eigh_tridiagonal(diagonal[:taken], beside[: taken - 1])
    missing = steps - taken
    return np.pad(nodes, (0, missing), mode="edge"), np.pad(vectors[0] ** 2, (0, missing))
