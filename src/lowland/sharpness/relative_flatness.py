"""The relative flatness of a layer."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowland.errors import InputError
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.curved import GaussNewton, matrix_of
from lowland.sharpness.measurement import Measurement, dtype_name
from lowland.sharpness.objective import Batch, Loss


def relative_flatness(
    loss: Loss | GaussNewton,
    weight: Tensor,
    batch: Batch,
    *,
    products: int = 60,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Measurement:
    r"""The relative flatness of a layer (Petzka et al., 2021).

    .. math::
        \sum_{s, s'} \langle w_s, w_{s'} \rangle \operatorname{tr}(H_{s, s'})

    with the rows :math:`w_s` of its weight and the blocks of the Hessian that belong to two of them. It is
    sampled by :math:`v^\top H v` with :math:`v = AZ` of random signs Z and :math:`A A^\top = W W^\top`. It
    does not change when the layer is multiplied by a positive number and the next one divided by it, where
    the function does not.

    Args:
        loss: As for :func:`hessian_eigenvalues`, and so are ``batch``, ``reduction`` and ``module``; for a
            :class:`GaussNewton`, H is that matrix.
        weight: The layer's weight, of two dimensions or more, outputs first.
        batch: The examples.
        products: Matrix-vector products, two at least.
        seed: Of the random signs.
        reduction: Whether the loss is a mean or a sum.
        module: The module that ``loss`` runs.

    Returns:
        The value, with its standard error over the products.

    Raises:
        InputError: If the weight has fewer dimensions, there are too few products, or the loss does not
            depend on it.

    Example:
        >>> import torch
        >>> from lowland.sharpness import relative_flatness
        >>> W = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> def loss(x):  # its Hessian is x xᵀ, of trace 3 ** 2; the row's squared length is 5
        ...     return 0.5 * (x @ W.T).square().mean()
        >>> round(relative_flatness(loss, W, (torch.tensor([[3.0, 0.0]]),)).value, 4)
        45.0
    """
    if weight.dim() < 2:
        raise InputError(f"weight must have two dimensions or more, got shape {tuple(weight.shape)}.")
    if products < 2:
        raise InputError(f"products must be at least 2, got {products}.")
    with matrix_of(loss, [weight], batch, module, reduction) as matrix:
        generator = torch.Generator().manual_seed(seed)
        root = _root(weight.detach().flatten(1).to(matrix.device, matrix.dtype))
        shape = (root.shape[1], weight[0].numel())
        out, forms = torch.empty(matrix.size, dtype=matrix.dtype, device=matrix.device), []
        for _ in range(products):
            bits = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
            v = (root @ bits.to(root).mul_(2.0).sub_(1.0)).reshape(-1)
            forms.append(float(torch.dot(v, matrix.product(v, out))))
        error = float(np.std(forms, ddof=1)) / math.sqrt(products)
        settings = {"products": products, "seed": seed}
        dtype = dtype_name([weight])
        return Measurement(
            "relative flatness", float(np.mean(forms)), error, matrix.target.examples, dtype, settings
        )


def _root(W: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs rank"]:
    """A, with the products of the rows of W, and no more columns than W has rows."""
    return W if W.shape[1] <= W.shape[0] else torch.linalg.qr(W.T, mode="r").R.T
