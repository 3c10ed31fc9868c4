"""Ascent along what is new in the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowland.sam.ascent.ball import L2
from lowland.sam.ascent.step import Ascent, AscentStep, BlindAscent, RememberingAscent
from lowland.sam.norm import l2_norm
from lowland.sam.part import Part


class Friendly(Part):
    r"""Ascent without the part of the gradient that all batches share (Friendly SAM; Li et al., 2024).

    .. math::
        d_t = g_t - \sigma\, \mu_{t-1}, \qquad \mu_t = \lambda \mu_{t-1} + (1 - \lambda)\, g_t,
        \qquad \mu_1 = g_1,

    and the other ascent climbs along :math:`d_t`, on the first step along :math:`g_1`. With groups,
    :math:`\mu` averages their mean gradient, once per call, and each group subtracts it from its own.

    Args:
        sigma: Weight of the average that is subtracted.
        lam: Its decay :math:`\lambda`.
        ascent: The ascent along the difference; :class:`L2` by default.

    Raises:
        ValueError: If ``lam`` is outside [0, 1].
        TypeError: If ``ascent`` needs no gradient or remembers gradients.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, Friendly
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> sam = SAM(w, rho=1.0, ascent=Friendly())
        >>> for _ in range(2):  # in the second call there is nothing new in the gradient
        ...     for t in w:
        ...         t.grad = None
        ...     value = sam.backward(loss)
        ...     print([round(t.grad.item(), 4) for t in w])
        [3.6, 4.8]
        [3.0, 4.0]
    """

    def __init__(self, sigma: float = 1.0, lam: float = 0.9, ascent: Ascent | None = None) -> None:
        if not 0.0 <= lam <= 1.0:
            raise ValueError(f"lam must be between 0 and 1, got {lam}.")
        if isinstance(ascent, (BlindAscent, RememberingAscent)):
            name = type(ascent).__name__
            raise TypeError(f"Friendly needs an ascent that climbs and remembers nothing, got {name}.")
        self.sigma = sigma
        self.lam = lam
        self.ascent: Ascent = ascent or L2()
        self.random = bool(getattr(self.ascent, "random", False))
        self.one_step = bool(getattr(self.ascent, "one_step", False))
        self._average: list[Tensor] | None = None

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """The other ascent's step along the difference."""
        if self._average is None:
            return self.ascent(step)
        self._require_shapes(step.g)
        d = torch._foreach_add(list(step.g), self._average, alpha=-self.sigma)
        return self.ascent(replace(step, g=d, norm=l2_norm(d).item()))

    def remember(self, gradients: Sequence[Tensor]) -> None:
        """Updates the average."""
        if self._average is None:
            self._average = [g.clone() for g in gradients]
            return
        self._require_shapes(gradients)
        self._average = list(torch._foreach_lerp(self._average, list(gradients), 1.0 - self.lam))

    def state_dict(self) -> dict[str, Any]:
        """The average, one tensor per perturbed parameter; ``None`` before the first step."""
        return {"average": self._average and [t.clone() for t in self._average]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``."""
        average = state["average"]
        self._average = average and [t.clone() for t in average]

    def _require_shapes(self, gradients: Sequence[Tensor]) -> None:
        assert self._average is not None
        wanted = [tuple(t.shape) for t in self._average]
        got = [tuple(g.shape) for g in gradients]
        if wanted != got:
            raise ValueError(f"Friendly must see the parameters that it averaged, {wanted}, got {got}.")
