"""The trace of the Hessian and of the Gauss-Newton matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor, nn

from lowland.errors import InputError
from lowland.sam.norm import l2_norm
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.curved import GaussNewton, matrix_of
from lowland.sharpness.objective import Batch, Loss, Params
from lowland.sharpness.products import Matrix

Array = np.ndarray


@dataclass(frozen=True)
class Trace:
    """An estimated trace.

    Attributes:
        value: The estimate.
        stderr: Its standard error: the trace is within it two times out of three, with few samples too; 0 if
            it is exact, NaN with a single sample.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
        blocks: The trace of each parameter's own block, in their order; they add up to ``value``.
        block_stderrs: Their standard errors.
    """

    value: float
    stderr: float
    examples: int
    products: int
    blocks: Float[Array, " params"] = field(repr=False)
    block_stderrs: Float[Array, " params"] = field(repr=False)

    def row(self) -> dict[str, Any]:
        """All of it but the blocks, flat, for a line of JSON."""
        return {
            "measure": "trace",
            "value": self.value,
            "stderr": self.stderr,
            "examples": self.examples,
            "matrix_products": self.products,
        }


def hessian_trace(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    *,
    products: int = 90,
    sketch: int = 2,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Trace:
    """The trace of the mean loss's Hessian, of the quadratic forms of random signs (Hutchinson, 1989).

    The same products sample the trace of every parameter's block, which tells which layers are sharp.
    What is in the directions of a ``sketch`` is measured by itself (Hutch++; Meyer et al., 2021), and the
    signs sample the rest. A sketch takes two products and one vector's memory for each direction.

    Args:
        loss: As for :func:`hessian_eigenvalues`, and so are ``params``, ``batch``, ``dtype``, ``reduction``
            and ``module``.
        params: The parameters.
        batch: The examples.
        products: Matrix-vector products; three times as many as the weights make it exact.
        sketch: Directions that are measured by themselves, at most a third of ``products``, which is what
            Hutch++ takes: best where few eigenvalues are most of the trace, and memory is no matter. 0 is
            Hutchinson's.
        dtype: Type of the vectors.
        seed: Of the random vectors.
        reduction: Whether the loss is a mean or a sum.
        module: The module that ``loss`` runs.

    Raises:
        InputError: If a number is out of its range, or the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import hessian_trace
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 2)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> batch = (torch.tensor([[3.0, 1.0, 2.0]]),)
        >>> found = hessian_trace(loss, w, batch)
        >>> round(found.value, 4), found.stderr, found.blocks.tolist()
        (6.0, 0.0, [4.0, 2.0])
    """
    if products < 3:
        raise InputError(f"products must be at least 3, got {products}.")
    if not 0 <= sketch <= products // 3:
        raise InputError(f"sketch must be between 0 and a third of products, {products // 3}, got {sketch}.")
    with matrix_of(loss, params, batch, module, reduction, dtype) as matrix:
        if products >= 3 * matrix.size:
            exact = _by_block(matrix, matrix.dense().diagonal())
            return _of(matrix, exact, np.zeros((2, len(exact))))
        generator = torch.Generator().manual_seed(seed)
        basis = _sketched(matrix, sketch, generator)
        product = torch.empty(matrix.size, dtype=matrix.dtype, device=matrix.device)
        measured = sum((_forms(matrix, q, product) for q in basis), np.zeros(len(matrix.target.params)))
        samples = products - 2 * sketch
        rest = np.stack([_outside(matrix, basis, generator, product) for _ in range(samples)])
        return _of(matrix, measured, rest)


def _of(matrix: Matrix, measured: Array, rest: Float[Array, "samples params"]) -> Trace:
    """What is known, and what was sampled, of each block."""
    blocks = measured + rest.mean(0)
    return Trace(
        float(blocks.sum()),
        _standard_error(rest.sum(1)),
        matrix.target.examples,
        matrix.count,
        blocks,
        np.array([_standard_error(column) for column in rest.T]),
    )


def _sketched(matrix: Matrix, sketch: int, generator: torch.Generator) -> Float[Tensor, "sketch weights"]:
    """Orthonormal directions in which the matrix is large, a row each."""
    basis = torch.empty(sketch, matrix.size, dtype=matrix.dtype, device=matrix.device)
    for i in range(sketch):
        w = matrix @ matrix.drawn(generator, signs=True)
        for _ in range(2):
            w.addmv_(basis[:i].T, basis[:i] @ w, alpha=-1.0)
        length = l2_norm([w])
        basis[i] = w / length if length > 0.0 else w
    return basis


def _outside(
    matrix: Matrix, basis: Float[Tensor, "sketch weights"], generator: torch.Generator, product: Tensor
) -> Float[Array, " params"]:
    """The quadratic forms of random signs, of which nothing is in the directions of the sketch."""
    g = matrix.drawn(generator, signs=True)
    g.addmv_(basis.T, basis @ g, alpha=-1.0)
    return _forms(matrix, g, product)


def _forms(matrix: Matrix, v: Tensor, product: Tensor) -> Float[Array, " params"]:
    """Each parameter's share of the quadratic form of ``v``."""
    pairs = zip(matrix.split(v), matrix.split(matrix.product(v, product)), strict=True)
    return np.array([float(torch.dot(a, b)) for a, b in pairs])


def _by_block(matrix: Matrix, diagonal: Tensor) -> Float[Array, " params"]:
    return np.array([float(piece.sum()) for piece in matrix.split(diagonal)])


def _standard_error(samples: Float[Array, " samples"]) -> float:
    """Of the mean, by the distribution of Student: with few samples their own deviation says too little."""
    if len(samples) < 2:
        return math.nan
    within = student.ppf(_WITHIN, len(samples) - 1)
    return float(within * samples.std(ddof=1) / math.sqrt(len(samples)))


_WITHIN = 0.5 * (1.0 + math.erf(math.sqrt(0.5)))
"""The probability that a normal number is at most one standard deviation above its mean."""
