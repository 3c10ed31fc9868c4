"""Products of a vector with the Hessian, or with the Gauss-Newton matrix, of a mean loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.errors import InputError
from lowland.sharpness.averaged import mean_of
from lowland.sharpness.objective import Objective, require_slope, require_some

Vector = Float[Tensor, " weights"]
PartProduct = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass
class Matrix:
    """A symmetric matrix over all weights that is known by its products.

    Attributes:
        target: The objective that it belongs to.
        of_part: Products of one part's matrix; the last part's graph is kept if it is the only one.
        dtype: Type of the vectors; they are on the device of the first parameter.
        count: Products so far.
    """

    target: Objective
    of_part: Callable[[Objective, tuple[Any, ...]], PartProduct]
    dtype: torch.dtype
    count: int = 0
    _kept: PartProduct | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Rows, and columns."""
        return self.target.num_weights

    @property
    def device(self) -> torch.device:
        """Where vectors are."""
        return self.target.params[0].device

    def __matmul__(self, vector: Vector) -> Vector:
        """The product."""
        return self.product(vector, torch.empty_like(vector))

    def product(self, vector: Vector, out: Vector) -> Vector:
        """The product, in the memory of ``out``: on a CPU, memory that is there is several times as fast."""
        self.count += 1
        v, shares = self.target.unflattened(vector), self.target.shares
        if len(shares) == 1:
            return self._flat(self._product(self.target.parts[0])(v), out)
        total = torch.zeros_like(vector)
        for part, share in zip(self.target.parts, shares, strict=True):
            total.add_(self._flat(self._product(part)(v), out), alpha=share)
        return out.copy_(total)

    def drawn(self, generator: torch.Generator, *, signs: bool = False) -> Vector:
        """A vector of Gaussian numbers, or of random signs, the same on every device."""
        if signs:
            bits = torch.randint(0, 2, (self.size,), generator=generator, dtype=torch.int8)
            return bits.to(self.device, self.dtype).mul_(2.0).sub_(1.0)
        return torch.randn(self.size, generator=generator).to(self.device, self.dtype)

    def split(self, vector: Vector) -> Sequence[Tensor]:
        """What of a vector belongs to each parameter."""
        return torch.split(vector, [p.numel() for p in self.target.params])

    def shaped(self, vector: Vector) -> list[Tensor]:
        """The same, with the parameters' shapes, where they are."""
        return [
            t.view_as(p).to(p.device) for t, p in zip(self.split(vector), self.target.params, strict=True)
        ]

    def dense(self) -> Float[Tensor, "weights weights"]:
        """The matrix itself, column by column, in double precision on the CPU."""
        units = torch.eye(self.size, dtype=self.dtype, device=self.device)
        columns = torch.stack([(self @ e).double().cpu() for e in units])
        return 0.5 * (columns + columns.T)

    def _flat(self, tensors: list[Tensor], out: Vector) -> Vector:
        found: Tensor = torch.cat([t.reshape(-1).to(self.device, self.dtype) for t in tensors], out=out)
        return found

    def _product(self, part: tuple[Any, ...]) -> PartProduct:
        if len(self.target.parts) > 1:
            return self.of_part(self.target, part)
        if self._kept is None:
            self._kept = self.of_part(self.target, part)
        return self._kept


def hessian_of_part(target: Objective, part: tuple[Any, ...]) -> PartProduct:
    """Products with the Hessian of one part's mean loss: gradients of gradients."""
    params = target.params
    found = target.slopes(part, create_graph=True)
    slopes = [(i, g) for i, g in enumerate(found) if g is not None and g.requires_grad]

    def product(v: Sequence[Tensor]) -> list[Tensor]:
        if not slopes:  # a linear loss
            return [torch.zeros_like(p) for p in params]
        return _grad([g for _, g in slopes], params, [v[i] for i, _ in slopes])

    return product


def gauss_newton_of_part(
    outputs: Callable[..., Tensor], criterion: Callable[..., Tensor]
) -> Callable[[Objective, tuple[Any, ...]], PartProduct]:
    r"""Products with :math:`J^\top H_f J`: J of the outputs f, the Hessian of the criterion in them."""

    def of_part(target: Objective, part: tuple[Any, ...]) -> PartProduct:
        target.generators.restore()
        f = outputs(*part)
        require_slope(f)
        free = f.detach().requires_grad_()
        slope = _slope_in(free, mean_of(criterion(free, *part), part, target.reduction))
        dual = torch.zeros_like(f, requires_grad=True)
        pulled = _pulled(f, target.params, dual)  # linear in dual: its gradient is J v

        def product(v: Sequence[Tensor]) -> list[Tensor]:
            pushed = _grad(pulled, [dual], v)[0]
            curved = _grad([slope], [free], [pushed])[0] if slope.requires_grad else torch.zeros_like(pushed)
            return _grad([f], target.params, [curved])

        return product

    return of_part


def _slope_in(outputs: Tensor, value: Tensor) -> Tensor:
    """The gradient of the criterion's value in the outputs."""
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, outputs, create_graph=True, allow_unused=True)
        if found is not None:
            slope: Tensor = found
            return slope
    raise InputError("criterion must depend on the outputs, got a value in which they have no gradient.")


def _pulled(f: Tensor, params: Sequence[Tensor], dual: Tensor) -> list[Tensor]:
    """The outputs' gradients in the parameters, contracted with ``dual``."""
    found = torch.autograd.grad(f, params, dual, create_graph=True, allow_unused=True)
    require_some(found)
    return [
        torch.zeros_like(p, requires_grad=True) if g is None else g
        for g, p in zip(found, params, strict=True)
    ]


def _grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    found = torch.autograd.grad(
        list(outputs),
        list(inputs),
        list(cotangents),
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)
