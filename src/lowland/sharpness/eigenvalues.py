"""Eigenvalues of the Hessian and of the Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowland.errors import InputError, one_of
from lowland.sam.norm import l2_norm
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.curved import GaussNewton, matrix_of
from lowland.sharpness.lanczos import End, Lanczos
from lowland.sharpness.objective import Batch, Loss, Params
from lowland.sharpness.products import Matrix

Array = np.ndarray
_DENSE = 40
"""Matrices of at most so many rows are formed."""


@dataclass(frozen=True)
class Eigenvalues:
    """Some eigenvalues of a symmetric matrix over the weights.

    Attributes:
        values: Largest first, or smallest first.
        vectors: The eigenvectors, of length 1: a row each, over all weights in the order of the parameters,
            on the device of the first.
        residuals: Length of ``H v - value v`` for each.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
    """

    values: Float[Array, " k"]
    vectors: Float[Tensor, "k weights"] = field(repr=False)
    residuals: Float[Array, " k"]
    examples: int
    products: int

    def row(self) -> dict[str, Any]:
        """All of it but the vectors, flat, for a line of JSON."""
        return {
            "measure": "eigenvalues",
            "value": self.value,
            "eigenvalues": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "examples": self.examples,
            "matrix_products": self.products,
        }

    @property
    def value(self) -> float:
        """The first."""
        return float(self.values[0])

    @property
    def ratio(self) -> float:
        r""":math:`\\lambda_1/\\lambda_5`, the measure of Foret et al. (2021); NaN with fewer than five."""
        return float(self.values[0] / self.values[4]) if len(self.values) > 4 else float("nan")


def hessian_eigenvalues(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    *,
    k: int = 1,
    end: End = "largest",
    tol: float = 1e-4,
    max_products: int = 2000,
    basis: int | None = None,
    start: Tensor | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Eigenvalues:
    """The ``k`` largest or smallest eigenvalues of the mean loss's Hessian, by Lanczos iteration.

    It is restarted thickly (Wu & Simon, 2000), so that it holds few vectors; they are on the weights' device
    and in their type.

    Args:
        loss: The mean loss of the examples it is given, as for :func:`lowland.sam_gradient`; a
            :class:`GaussNewton` asks for that matrix.
        params: The parameters; unchanged, and so are their ``.grad``, buffers and random generators.
        batch: The loss's arguments, or :class:`~lowland.sam.MicroBatches` of such, which count by their
            examples.
        k: Number of eigenvalues.
        end: Which end of the spectrum.
        tol: How long a residual may be, in units of the largest eigenvalue in size, whichever end is asked
            for. An eigenvalue is off by that at most, and by about its square over the distance to the next.
        max_products: Products after which it gives up.
        basis: Vectors that are held, ``4 * k + 2`` by default; more take fewer products.
        start: The first vector, of shape ``(weights,)``: an eigenvector of weights nearby, say. By default it
            is random.
        dtype: Type of the vectors, ``torch.float32`` or ``torch.float64``; that of the weights by default.
            Products are computed in the weights' own.
        seed: Of the random vectors.
        reduction: ``"sum"`` for a loss, or a criterion, that adds up its examples instead: it is divided by
            their number.
        module: The module that ``loss`` runs; otherwise modules are found as they run.

    Returns:
        The eigenvalues, with their eigenvectors and how well they are met.

    Raises:
        InputError: If a number is out of its range, the loss does not depend on the parameters, or the
            eigenvalues do not converge.

    Example:
        >>> import torch
        >>> from lowland.sharpness import hessian_eigenvalues
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 2)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> batch = (torch.tensor([[3.0, 1.0, 2.0]]),)
        >>> found = hessian_eigenvalues(loss, w, batch, k=2)
        >>> [round(float(value), 5) for value in found.values]
        [3.0, 2.0]
    """
    one_of("end", end, get_args(End))
    if not tol >= 0.0:
        raise InputError(f"tol must be non-negative, got {tol}.")
    if basis is not None and basis < k + 2:
        raise InputError(f"basis must be at least k + 2, {k + 2}, got {basis}.")
    with matrix_of(loss, params, batch, module, reduction, dtype) as matrix:
        if not 1 <= k <= matrix.size:
            raise InputError(f"k must be between 1 and the {matrix.size} weights, got {k}.")
        if start is not None and start.shape != (matrix.size,):
            raise InputError(f"start must have shape ({matrix.size},), got {tuple(start.shape)}.")
        vectors = 4 * k + 2 if basis is None else basis
        if matrix.size <= max(_DENSE, vectors):
            values, rows = _dense(matrix, k, end)
        else:
            values, rows = _iterated(matrix, k, end, tol, max_products, vectors, start, seed)
        residuals = np.array([_residual(matrix, x, v) for x, v in zip(values, rows, strict=True)])
        return Eigenvalues(values, rows, residuals, matrix.target.examples, matrix.count)


def _dense(matrix: Matrix, k: int, end: End) -> tuple[Array, Tensor]:
    values, vectors = torch.linalg.eigh(matrix.dense())
    order = torch.argsort(values, descending=end == "largest")[:k]
    return values[order].numpy(), vectors.T[order].to(matrix.device, matrix.dtype)


def _iterated(
    matrix: Matrix,
    k: int,
    end: End,
    tol: float,
    max_products: int,
    basis: int,
    start: Tensor | None,
    seed: int,
) -> tuple[Array, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = matrix.drawn(generator) if start is None else start.to(matrix.device, matrix.dtype)
    lanczos = Lanczos(matrix, end, basis)
    converged = lanczos.run(k, first, tol=tol, max_products=max_products, generator=generator)
    if converged < k:
        raise InputError(
            f"max_products must be enough for {k} eigenvalues to converge, got {max_products}, "
            f"with which {converged} did."
        )
    return lanczos.values, lanczos.vectors[:k]


def _residual(matrix: Matrix, value: float, vector: Tensor) -> float:
    return l2_norm([(matrix @ vector).sub_(vector, alpha=float(value))]).item()
