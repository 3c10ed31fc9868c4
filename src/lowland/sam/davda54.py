"""SAM with the signature of davda54/sam: to migrate, change the import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lowland.sam.ascent import L2, Adaptive
from lowland.sam.choice import OF_SAM, is_switch
from lowland.sam.trainers.optimizer import SAMOptimizer


class SAM(SAMOptimizer):
    r"""``SAM(params, base_optimizer, rho=0.05, adaptive=False, **kwargs)``.

    The same calls (``first_step``, ``second_step``, ``step(closure)``) and the same arithmetic, without its
    faults. What differs on purpose: ``state_dict`` holds the base optimizer's state, the closure need not
    be preceded by a backward pass of its own, groups with ``rho=0`` do not count in the norm, and ``step``
    returns the loss.

    Args:
        params: Parameters or parameter groups; groups may have their own ``rho``.
        base_optimizer: Class of the optimizer that makes the steps.
        rho: Radius of the ascent.
        adaptive: Whether :math:`e = \rho\, w^2 g / \||w| g\|_2`: without ASAM's η, and for all parameters.
        kwargs: Arguments of ``base_optimizer``.

    Raises:
        ValueError: If ``rho`` is negative, or a group has another ``adaptive``.

    Example:
        >>> import torch
        >>> from lowland.sam.davda54 import SAM
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> optimizer = SAM(w, torch.optim.SGD, rho=1.0, lr=0.1)
        >>> loss().backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> loss().backward()
        >>> optimizer.second_step(zero_grad=True)
        >>> [round(t.item(), 4) for t in w]
        [2.64, 3.52]
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        **kwargs: Any,
    ) -> None:
        OF_SAM["rho"]("rho", rho)
        is_switch("adaptive", adaptive)
        ascent = Adaptive(eta=0.0, scaled="*") if adaptive else L2()
        super().__init__(base_optimizer(params, **kwargs), rho=rho, ascent=ascent)
        for group in self.param_groups:
            group.setdefault("rho", rho)
            if group.setdefault("adaptive", adaptive) != adaptive:
                raise ValueError(f"adaptive must be the same for all groups, {adaptive}, got {not adaptive}.")
