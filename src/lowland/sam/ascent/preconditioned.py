"""A climb along the gradient as the optimizer scales it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowland.sam.ascent.ball import L2
from lowland.sam.ascent.step import AscentStep
from lowland.sam.precision import working
from lowland.sam.vectors import Vector


@dataclass(frozen=True)
class Preconditioned:
    r"""Ascent along the gradient, scaled as Adam scales it, in the ball :math:`\|e\|_2 \le \rho`.

    .. math::
        e = \rho\, \frac{P g}{\|P g\|_2}, \qquad P = \frac{1}{\sqrt v + \epsilon}

    with the optimizer's second moment :math:`v`, without bias correction, of each weight. Named, for language
    models, by Singh et al. (2025, arXiv 2502.02407); their text could not be read, so the formula is our
    reading. Before the optimizer has a second moment, the climb is that of :class:`L2`.

    Args:
        optimizer: The optimizer, whose state holds ``exp_avg_sq`` (Adam) or ``square_avg`` (RMSprop).
        eps: :math:`\epsilon`, beside the root of the second moment.

    Raises:
        ValueError: If ``eps`` is not positive; when climbing, if the optimizer does not train a weight that
            is to move, or has a state for it without a second moment.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, Preconditioned
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> optimizer = torch.optim.Adam(w, lr=0.0)
        >>> sam = SAM(w, rho=2**0.5, ascent=Preconditioned(optimizer))
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     value = sam.backward(loss)
        ...     optimizer.step()  # v is as the square of the gradient, so P g is the same for both
        >>> [round(t.grad.item(), 3) for t in w]
        [4.0, 5.0]
    """

    optimizer: torch.optim.Optimizer
    eps: float = 1e-8

    of_many: ClassVar[bool] = True
    has_no_low_rank: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.eps > 0.0:
            raise ValueError(f"eps must be positive, got {self.eps}.")

    def __call__(self, step: AscentStep) -> Vector | None:
        """The step of :class:`L2` for ``P g``."""
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        g = step.g.times([self._unit(w, is_trained=id(w) in trained) for w in step.w])
        return L2()(replace(step, g=g, norm=g.norm()))

    def _unit(self, w: Tensor, *, is_trained: bool) -> Tensor | None:
        """P of a weight; ``None`` for 1."""
        if not is_trained:
            raise ValueError(
                "the optimizer must train every weight that is to move, got one that it does not have."
            )
        state = self.optimizer.state.get(w, {})
        for name in ("exp_avg_sq", "square_avg"):
            if isinstance(state.get(name), Tensor):
                return 1.0 / (working(state[name].detach()).sqrt() + self.eps)
        if state:
            raise ValueError(
                f"the optimizer must keep exp_avg_sq or square_avg, got state with {sorted(state)}."
            )
        return None
