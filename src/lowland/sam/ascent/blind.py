"""Perturbations that need no gradient, and so no second pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lowland.sam.ascent.step import Weights, generator
from lowland.sam.precision import working
from lowland.sam.vectors import One, over

Distribution = Literal["gaussian", "uniform"]
Scaling = Literal["additive", "multiplicative"]


@dataclass(frozen=True)
class Random:
    r"""A random perturbation, drawn anew for every group (Andriushchenko & Flammarion, 2022, figure 1).

    .. math::
        e = \frac{\rho}{\sqrt p}\, z \quad\text{or}\quad e = \frac{\rho}{\sqrt p}\, |w| \, z,

    with :math:`p` weights and independent :math:`z_i` of mean 0 and variance 1, so that
    :math:`\mathbb E \|e\|_2^2 = \rho^2` (multiplicative: of :math:`e / |w|`). A standard deviation
    :math:`\sigma` per weight is :math:`\rho = \sigma \sqrt p`.

    Args:
        distribution: Of :math:`z`: ``"gaussian"`` or ``"uniform"``.
        scaling: ``"additive"`` or ``"multiplicative"``.

    Raises:
        ValueError: If an argument is unknown.

    Example:
        >>> import torch
        >>> from lowland.sam import Random, sam_gradient
        >>> w = [torch.zeros(5000, requires_grad=True) for _ in range(2)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2
        >>> found = sam_gradient(loss, w, (), rho=2.0, ascent=Random(), diagnostics=True)
        >>> round(found.diagnostics.perturbation_norm.item(), 0)
        2.0
    """

    distribution: Distribution = "gaussian"
    scaling: Scaling = "additive"

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.distribution not in get_args(Distribution):
            raise ValueError(
                f"distribution must be one of {get_args(Distribution)}, got {self.distribution!r}."
            )
        if self.scaling not in get_args(Scaling):
            raise ValueError(f"scaling must be one of {get_args(Scaling)}, got {self.scaling!r}.")

    def without_gradient(self, weights: Weights) -> Sequence[Tensor] | None:
        """A draw."""
        directions = [self._draw(weights, w.detach()) for w in weights.w]
        return One(directions, float(weights.rho) / math.sqrt(sum(w.numel() for w in weights.w)))

    def _draw(self, weights: Weights, w: Tensor) -> Tensor:
        z = torch.empty_like(working(w))
        noise = generator(weights, w.device)
        if self.distribution == "gaussian":
            z.normal_(generator=noise)
        else:
            z.uniform_(-math.sqrt(3), math.sqrt(3), generator=noise)
        return z if self.scaling == "additive" else z * working(w).abs()


@dataclass(frozen=True)
class AlongMomentum:
    r"""Perturbation along the optimizer's momentum :math:`v` (MSAM; Becker et al., 2024, algorithm 1).

    .. math::
        e = -\rho\, \frac{v}{\|v\|_2}

    The gradient is that at ``w + e``, as in Nesterov's method but at a distance that does not depend on
    the learning rate. Before the optimizer has a momentum nothing is perturbed. (Not to be confused with
    m-SAM.)

    Args:
        optimizer: The optimizer, whose state holds ``momentum_buffer`` (SGD) or ``exp_avg`` (Adam).

    Raises:
        ValueError: When climbing, if the optimizer has a state but no momentum in it.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, AlongMomentum
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> optimizer = torch.optim.SGD(w, lr=1.0, momentum=0.9)
        >>> sam = SAM(w, rho=1.0, ascent=AlongMomentum(optimizer))
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     value = sam.backward(loss)
        ...     optimizer.step()  # the first leads to 0, with the momentum (3, 4)
        >>> [round(t.grad.item(), 4) for t in w]
        [-0.6, -0.8]
    """

    optimizer: torch.optim.Optimizer

    def without_gradient(self, weights: Weights) -> Sequence[Tensor] | None:
        """The momentum, at length ``rho``."""
        if any(group.get("momentum", 1.0) == 0.0 for group in self.optimizer.param_groups):
            raise ValueError("the optimizer must keep a momentum_buffer or exp_avg, got momentum=0.")
        v = [self._momentum(w) for w in weights.w]
        if not any(buffer is not None for buffer in v):
            return None
        known = [
            torch.zeros_like(w) if buffer is None else buffer for w, buffer in zip(weights.w, v, strict=True)
        ]
        along = One([working(buffer) for buffer in known])
        return (
            along.scaled(-over(weights.rho, along.norm(), along.largest_factor))
            if along.is_finite()
            else None
        )

    def _momentum(self, w: Tensor) -> Tensor | None:
        state = self.optimizer.state.get(w, {})
        for name in ("momentum_buffer", "exp_avg"):
            if isinstance(state.get(name), Tensor):
                found: Tensor = state[name]
                return found.detach().to_dense()
        if state and "momentum_buffer" not in state:
            raise ValueError(
                f"the optimizer must keep a momentum_buffer or exp_avg, got state with {sorted(state)}."
            )
        return None
