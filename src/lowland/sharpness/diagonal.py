"""The diagonal of the Hessian, or of another matrix of curvature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lowland.errors import InputError
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.curved import GaussNewton, matrix_of
from lowland.sharpness.objective import Batch, Loss, Params, as_given, listed_params
from lowland.sharpness.products import Matrix, Vector


@dataclass(frozen=True)
class Diagonal:
    """An estimated diagonal.

    Attributes:
        values: Its entries, tensors like the parameters, as these were given.
        stderrs: Their standard errors, 0 where the diagonal is exact.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
    """

    values: Params = field(repr=False)
    stderrs: Params = field(repr=False)
    examples: int
    products: int

    def row(self) -> dict[str, Any]:
        """All of it but the tensors, of which the largest and smallest entry, flat, for JSON."""
        flat = torch.cat([t.reshape(-1).double().cpu() for t in listed_params(self.values)])
        return {
            "measure": "diagonal",
            "value": float(flat.max()),
            "smallest": float(flat.min()),
            "weights": len(flat),
            "examples": self.examples,
            "matrix_products": self.products,
        }


def hessian_diagonal(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    *,
    products: int = 100,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Diagonal:
    r"""The diagonal of the mean loss's Hessian, the mean of :math:`v \odot Hv` over random signs v.

    Each entry's error is the length of the rest of its row, over the root of the number of products (Bekas
    et al., 2007), so that it is best where the diagonal is most of the matrix.

    Args:
        loss: As for :func:`hessian_eigenvalues`, and so are ``params``, ``batch``, ``dtype``, ``reduction``
            and ``module``.
        params: The parameters.
        batch: The examples.
        products: Matrix-vector products, two at least; as many as there are weights make it exact.
        dtype: Type of the vectors, of which four are held.
        seed: Of the random signs.
        reduction: Whether the loss is a mean or a sum.
        module: The module that ``loss`` runs.

    Raises:
        InputError: If a number is out of its range, or the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import hessian_diagonal
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 2)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> found = hessian_diagonal(loss, w, (torch.tensor([[3.0, 1.0, 2.0]]),))
        >>> [t.tolist() for t in found.values]
        [[3.0, 1.0], [2.0]]
    """
    if products < 2:
        raise InputError(f"products must be at least 2, got {products}.")
    with matrix_of(loss, params, batch, module, reduction, dtype) as matrix:
        if products >= matrix.size:
            exact = matrix.dense().diagonal().to(matrix.device, matrix.dtype)
            mean, error = exact, torch.zeros_like(exact)
        else:
            mean, error = _sampled(matrix, products, torch.Generator().manual_seed(seed))
        values, stderrs = (as_given(params, matrix.shaped(v)) for v in (mean, error))
        return Diagonal(values, stderrs, matrix.target.examples, matrix.count)


def _sampled(matrix: Matrix, products: int, generator: torch.Generator) -> tuple[Vector, Vector]:
    """The mean, and its standard error, by the updates of Welford (1962), which lose no digits."""
    out = torch.empty(matrix.size, dtype=matrix.dtype, device=matrix.device)
    mean, squares = torch.zeros_like(out), torch.zeros_like(out)
    for k in range(1, products + 1):
        v = matrix.drawn(generator, signs=True)
        deviation = matrix.product(v, out).mul_(v).sub_(mean)
        mean.add_(deviation, alpha=1.0 / k)
        squares.addcmul_(deviation, deviation, value=(k - 1.0) / k)
    return mean, squares.div_(products * (products - 1)).sqrt_()
