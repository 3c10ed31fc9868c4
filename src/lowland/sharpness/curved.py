"""The matrix whose curvature is measured: the Hessian of a loss, or its Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from lowland.errors import InputError
from lowland.sam.precision import working
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.objective import Batch, Loss, Params, objective
from lowland.sharpness.products import Matrix, gauss_newton_of_part, hessian_of_part


@dataclass(frozen=True)
class GaussNewton:
    r"""A loss in two parts, :math:`\ell(f(x))`, whose Gauss-Newton matrix is wanted in place of its Hessian.

    Attributes:
        outputs: ``outputs(*batch)``: the model's outputs.
        criterion: ``criterion(outputs, *batch)``: their mean loss as a scalar, or one value per example.

    Example:
        >>> import torch
        >>> from lowland.sharpness import GaussNewton, hessian_trace
        >>> a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
        >>> def outputs(x):
        ...     return x * a * b
        >>> def criterion(outputs, x):
        ...     return 0.5 * outputs.square()
        >>> loss = GaussNewton(outputs, criterion)  # of J = (1, 1), without the curvature of a * b
        >>> found = hessian_trace(loss, [a, b], (torch.ones(1),))
        >>> round(found.value, 4)
        2.0
    """

    outputs: Callable[..., Tensor]
    criterion: Callable[..., Tensor]

    def __call__(self, *batch: Any) -> Tensor:
        """The loss of the examples in ``batch``."""
        return self.criterion(self.outputs(*batch), *batch)


@contextmanager
def matrix_of(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    module: nn.Module | None,
    reduction: Reduction,
    dtype: torch.dtype | None = None,
) -> Iterator[Matrix]:
    """The matrix inside the block; its vectors are of ``dtype``, or of the weights' own type.

    Raises:
        InputError: If ``dtype`` is none that numbers are computed in.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    with objective(loss, params, batch, module, reduction) as target:
        own = reduce(
            torch.promote_types,
            (working(p.detach()[:0]).dtype if p.dim() else p.dtype for p in target.params),
        )
        if isinstance(loss, GaussNewton):
            yield Matrix(target, gauss_newton_of_part(loss.outputs, loss.criterion), dtype or own)
        else:
            yield Matrix(target, hessian_of_part, dtype or own)
