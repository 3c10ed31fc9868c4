"""The gradient of a batch from those of its parts, one in each process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowland.deep.processes import Ranks
from lowland.deep.share import Share
from lowland.sam.combine import Combine
from lowland.sam.ranks import added_up


class SummedGradients:
    """Puts into ``.grad`` the mean over the examples of all processes.

    A rule that combines the gradients at the weights and at the perturbed ones is not linear: it is asked
    for the means of all.

    Args:
        params: The parameters that are trained.
        share: This process's part of a batch.
        ranks: Which process of how many.
        rule: How the two gradients are combined; ``None`` takes that at the perturbed weights.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], share: Share, ranks: Ranks, rule: Combine | None
    ) -> None:
        self._params, self._share, self._ranks, self._rule = params, share, ranks, rule
        self._at_weights: list[Tensor] | None = None

    @property
    def combine(self) -> Combine | None:
        """What SAM is to combine by in this process."""
        return self._remember if self._rule is not None and self._ranks.several else self._rule

    def add_up(self) -> None:
        """Makes ``.grad``, the mean over this process's examples, that over all."""
        if not self._ranks.several:
            return
        present = torch.stack([p.new_tensor(float(p.grad is not None)) for p in self._params])
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        if self._rule is None:
            (present, *found) = added_up([present, *own], times=self._share.weight)
        else:
            at_weights = own if self._at_weights is None else self._at_weights
            (present, *both) = added_up([present, *at_weights, *own], times=self._share.weight)
            found = list(self._rule(both[: len(own)], both[len(own) :]))
        self._at_weights = None
        for p, gradient, parts in zip(self._params, found, present.tolist(), strict=True):
            p.grad = gradient if parts else None

    def _remember(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """Keeps the gradient at the weights for the rule; it is not called where nothing is perturbed."""
        self._at_weights = [g.clone() for g in gradient]
        return list(perturbed)
