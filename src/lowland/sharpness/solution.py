"""Products with the inverse of the Hessian, or of another matrix of curvature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowland.errors import InputError
from lowland.sam.norm import l2_norm
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.curved import GaussNewton, matrix_of
from lowland.sharpness.objective import Batch, Loss, Params, as_given, listed_params
from lowland.sharpness.products import Matrix, Vector


@dataclass(frozen=True)
class Solution:
    """What a linear system over the weights was solved by.

    Attributes:
        vector: The solution, as the parameters were given.
        residual: Length of what is left, over the length of the right-hand side; measured by a last product.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
    """

    vector: Params = field(repr=False)
    residual: float
    examples: int
    products: int

    def row(self) -> dict[str, Any]:
        """All of it but the vector, flat, for a line of JSON."""
        return {
            "measure": "solution",
            "value": self.residual,
            "examples": self.examples,
            "matrix_products": self.products,
        }


def hessian_solve(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    vector: Params,
    *,
    damping: float,
    tol: float = 1e-4,
    max_products: int = 1000,
    dtype: torch.dtype | None = None,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Solution:
    r""":math:`(H + \lambda I)^{-1} v`, by conjugate gradients (Hestenes & Stiefel, 1952).

    It is the step of damped Newton and natural-gradient methods, and what influence functions are made of.

    Args:
        loss: As for :func:`hessian_eigenvalues`, and so are ``params``, ``batch``, ``dtype``, ``reduction``
            and ``module``: a :class:`GaussNewton` asks for that matrix, which is never negative.
        params: The parameters.
        batch: The examples.
        vector: The right-hand side, tensors like the parameters, given as these are: gradients, say.
        damping: :math:`\lambda`; with it the matrix must be positive definite.
        tol: Length of what may be left, over the length of ``vector``.
        max_products: Products after which it gives up.
        dtype: Type of the vectors.
        reduction: Whether the loss is a mean or a sum.
        module: The module that ``loss`` runs.

    Returns:
        The product, with what is left of the right-hand side.

    Raises:
        InputError: If a number is out of its range, shapes differ, the matrix turns out not to be positive
            definite, or the iteration does not converge.

    Example:
        >>> import torch
        >>> from lowland.sharpness import hessian_solve
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 7)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> batch = (torch.tensor([[3.0, 1.0, 7.0]]),)
        >>> found = hessian_solve(loss, w, batch, [torch.ones(2), torch.ones(1)], damping=1.0)
        >>> [t.round(decimals=3).tolist() for t in found.vector]
        [[0.25, 0.5], [0.125]]
    """
    if not 0.0 <= damping < float("inf"):
        raise InputError(f"damping must be non-negative and finite, got {damping}.")
    if not tol > 0.0:
        raise InputError(f"tol must be positive, got {tol}.")
    given = _like(params, vector)
    with matrix_of(loss, params, batch, module, reduction, dtype) as matrix:
        b = torch.cat([t.detach().reshape(-1).to(matrix.device, matrix.dtype) for t in given])
        x = _conjugate_gradients(matrix, b, damping, tol, max_products)
        left = (matrix @ x).add_(x, alpha=damping).sub_(b)
        length = _length(b)
        residual = _length(left) / length if length > 0.0 else 0.0
        found = as_given(params, matrix.shaped(x))
        return Solution(found, residual, matrix.target.examples, matrix.count)


def _like(params: Params, vector: Params) -> list[Tensor]:
    """The tensors of ``vector`` in the order of the parameters."""
    given = listed_params(vector)
    if isinstance(params, Mapping) or isinstance(vector, Mapping):
        names, own = (list(t) if isinstance(t, Mapping) else [] for t in (params, vector))
        if sorted(names) != sorted(own):
            raise InputError(f"vector must be named as the params are, {names}, got {own}.")
        given = [given[own.index(name)] for name in names]
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (listed_params(params), given)]
    if shapes[0] != shapes[1]:
        raise InputError(f"vector must have the shapes of the params, {shapes[0]}, got {shapes[1]}.")
    return given


def _conjugate_gradients(matrix: Matrix, b: Vector, damping: float, tol: float, most: int) -> Vector:
    x, r, out = torch.zeros_like(b), b.clone(), torch.empty_like(b)
    p, length, goal = b.clone(), _length(b), tol * _length(b)
    while length > goal:
        if matrix.count >= most:
            raise InputError(
                f"max_products must be enough to come to {tol:g} of the vector, got {most}, "
                f"with which {length / _length(b):.1g} is left."
            )
        curved = matrix.product(p, out).add_(p, alpha=damping)
        along = float(torch.dot(p, curved))
        if not along > 0.0:
            raise InputError(
                f"damping must make the matrix positive definite, got {damping:g}, with which a direction "
                f"has the curvature {along / _length(p) ** 2:.3g}: take more, or a GaussNewton, which is "
                "never negative."
            )
        step = length**2 / along
        x.add_(p, alpha=step)
        r.sub_(curved, alpha=step)
        before, length = length, _length(r)
        p.mul_((length / before) ** 2).add_(r)
    return x


def _length(v: Vector) -> float:
    return float(l2_norm([v]).item())
