"""Climbing in some steps only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowland.sam.combine.weighted import orthogonal_part
from lowland.sam.norm import l2_norm
from lowland.sam.part import Call, Part, Way


class Look(Part):
    r"""Climbs every k-th step and reuses the flat direction in between (LookSAM; Liu et al., 2022, alg. 1).

    In the steps that climb, the gradient is SAM's :math:`g_s`, whose part orthogonal to
    :math:`g = \nabla L(w)` is kept: :math:`g_v`. In the others, with one pass, it is

    .. math::
        g + \alpha \frac{\|g\|_2}{\|g_v\|_2}\, g_v.

    If there is no such part, or rounding alone, the next step climbs again.

    Args:
        k: A step in k climbs, the first one among them.
        alpha: Weight :math:`\alpha` of the reused direction.

    Raises:
        ValueError: If ``k`` is not a positive whole number; in a step that reuses, if the parameters are
            other ones than in the step that climbed.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, Look
        >>> w, passes = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)], []
        >>> def loss():
        ...     passes[-1] += 1
        ...     return w[0].square().sum() + 2.0 * w[1].square().sum()
        >>> optimizer, sam = torch.optim.SGD(w, lr=0.01), SAM(w, rho=1.0, combine=Look(k=2))
        >>> for _ in range(4):
        ...     passes.append(0)
        ...     optimizer.zero_grad()
        ...     value = sam.backward(loss)
        ...     optimizer.step()
        >>> passes  # every second step climbs
        [2, 1, 2, 1]
    """

    ways: ClassVar[tuple[Way, ...]] = ("backward", "objective", "step(closure)")

    def __init__(self, k: int = 5, alpha: float = 0.7) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a positive whole number, got {k!r}.")
        self.k = k
        self.alpha = alpha
        self._direction: list[Tensor] | None = None

    def __call__(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of SAM, whose new direction is kept."""
        direction = orthogonal_part(perturbed, gradient)
        norm = l2_norm(direction)
        if bool(norm.isfinite()):
            rounding = 100.0 * torch.finfo(norm.dtype).eps * l2_norm(perturbed)
            self._direction = [d / norm.to(d) for d in direction] if norm > rounding else None
        return list(perturbed)

    def begin(self, call: Call) -> None:
        """Every k-th step climbs, and any while there is nothing to reuse."""
        if call.climbs and call.step % self.k != 0 and self._direction is not None:
            call.instead = self.reuse

    def reuse(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The gradient with the kept direction at its side.

        Args:
            gradient: The gradient at the weights, one tensor per parameter.

        Raises:
            ValueError: If the parameters are other ones than those of the climb.
        """
        assert self._direction is not None
        wanted, got = ([tuple(t.shape) for t in ts] for ts in (self._direction, gradient))
        if wanted != got:
            raise ValueError(f"Look must see the parameters that it climbed with, {wanted}, got {got}.")
        factor = self.alpha * l2_norm(gradient)
        return [g + d * factor.to(g) for g, d in zip(gradient, self._direction, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The kept direction, of length 1, one tensor per parameter; ``None`` if there is none."""
        return {"direction": self._direction and [t.clone() for t in self._direction]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``."""
        direction = state["direction"]
        self._direction = direction and [torch.as_tensor(t).clone() for t in direction]
