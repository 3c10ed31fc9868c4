"""Sums of the two gradients and of their components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.sam.average import dense
from lowland.sam.norm import l2_norm
from lowland.sam.part import Call, Part, Way
from lowland.sam.ranks import added_up, several_processes


@dataclass(frozen=True)
class SurrogateGap:
    r"""The gradient at :math:`w + e`, against the rest of that at :math:`w` (GSAM; Zhuang et al., 2022).

    .. math::
        \nabla L(w + e) - \alpha \, \nabla L(w)_\perp,

    where :math:`\nabla L(w)_\perp` is the part of :math:`\nabla L(w)` that is orthogonal to
    :math:`\nabla L(w + e)`: it lowers the gap between the two losses and leaves the perturbed loss alone.

    Args:
        alpha: Weight :math:`\alpha` of the gap.

    Example:
        >>> import torch
        >>> from lowland.sam import SurrogateGap
        >>> at_w, at_w_plus_e = ([torch.tensor([a]), torch.tensor([b])] for a, b in ((2.0, 3.0), (1.0, 0.0)))
        >>> SurrogateGap(alpha=0.5)(at_w, at_w_plus_e)  # (0, 3) of the gradient at w is orthogonal
        [tensor([1.]), tensor([-1.5000])]
    """

    alpha: float

    def __call__(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of GSAM."""
        orthogonal = orthogonal_part(gradient, perturbed)
        return list(torch._foreach_add(list(perturbed), orthogonal, alpha=-self.alpha))


@dataclass(frozen=True)
class Weighted:
    r"""The loss and its sharpness, weighted (WSAM, coupled; Yue et al., 2023, eq. 4).

    .. math::
        \nabla L(w) + \frac{\gamma}{1 - \gamma} \bigl(\nabla L(w + e) - \nabla L(w)\bigr)

    0 is ERM, 1/2 is SAM, and more than that weighs sharpness more.

    Args:
        gamma: :math:`\gamma`, at least 0 and below 1.

    Raises:
        ValueError: If ``gamma`` is out of range.

    Example:
        >>> import torch
        >>> from lowland.sam import Weighted, sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # the gradient is w, of norm 5
        >>> found = sam_gradient(loss, w, (), rho=1.0, combine=Weighted(gamma=0.75))
        >>> [round(g.item(), 4) for g in found.gradients]
        [4.8, 6.4]
    """

    gamma: float

    def __post_init__(self) -> None:
        _check_gamma(self.gamma)

    def __call__(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of WSAM."""
        return list(torch._foreach_add(list(gradient), _sharpness(self.gamma, gradient, perturbed)))


class DecoupledWeighted(Part):
    r"""The sharpness outside the optimizer, like decoupled weight decay (WSAM; Yue et al., 2023, alg. 1).

    The optimizer is given :math:`\nabla L(w)`, and after each of its steps

    .. math::
        w \leftarrow w - \eta \frac{\gamma}{1 - \gamma} \bigl(\nabla L(w + e) - \nabla L(w)\bigr)

    with the learning rate :math:`\eta` of the parameter's group, averaged over groups and accumulated over
    calls. Clipping and momentum act on :math:`\nabla L(w)` only. A step that is skipped skips this too. A
    difference that is not finite is added to the gradient, where it shows, and left out here.

    Args:
        gamma: :math:`\gamma`, at least 0 and below 1.
        optimizer: The optimizer; a hook on its steps is registered.
        process_group: Processes that train together, over which the difference is averaged after each step.

    Raises:
        ValueError: If ``gamma`` is out of range; when used in one of several processes without a
            ``process_group``.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, DecoupledWeighted
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> optimizer = torch.optim.SGD(w, lr=0.1)
        >>> sam = SAM(w, rho=1.0, combine=DecoupledWeighted(0.5, optimizer))
        >>> value = sam.backward(loss)
        >>> [t.grad.item() for t in w]  # that at w, without the sharpness
        [3.0, 4.0]
        >>> optimizer.step()
        >>> [round(t.item(), 4) for t in w]
        [2.64, 3.52]
    """

    ways: ClassVar[tuple[Way, ...]] = ("backward",)

    def __init__(
        self,
        gamma: float,
        optimizer: torch.optim.Optimizer,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        _check_gamma(gamma)
        self.gamma = gamma
        self._found: list[Tensor] | None = None
        self._pending: dict[Tensor, Tensor] = {}
        self._process_group = process_group
        self._handle = optimizer.register_step_post_hook(self._apply)

    def __call__(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient at ``w``; the difference waits for the call's end."""
        if self._process_group is None and several_processes():
            raise ValueError(
                "DecoupledWeighted must be given the process_group that trains together, "
                f"got None in one of {dist.get_world_size()} processes."
            )
        found = _sharpness(self.gamma, gradient, perturbed)
        if not bool(l2_norm(found).isfinite()):
            return list(torch._foreach_add(list(gradient), found))
        self._found = found
        return list(gradient)

    def end(self, call: Call) -> None:
        """Adds what the call found to what the optimizer's next step will apply.

        What a skipped step left behind is dropped by the call that begins another.
        """
        if call.begins:
            self._pending.clear()
        found, self._found = self._found, None
        for p, difference in zip(call.params, found or [], strict=bool(found)):
            pending = self._pending.get(p)
            difference = difference * call.unscale
            self._pending[p] = difference if pending is None else pending + difference

    @torch.no_grad()
    def _apply(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        found = {p: self._pending.pop(p) for p in params if p in self._pending}
        if self._process_group is not None:
            found |= self._mean_over_ranks(found, [p for p in params if p.requires_grad])
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p in found:
                    p.add_(found[p].to(p.dtype), alpha=-float(group["lr"]))

    def _mean_over_ranks(self, found: dict[Tensor, Tensor], params: list[Tensor]) -> dict[Tensor, Tensor]:
        """The mean of what processes have found, all of which have some; nothing found is zero."""
        group = self._process_group
        own = dense([found.get(p) for p in params], params)
        return dict(zip(params, added_up(own, group, times=1.0 / dist.get_world_size(group)), strict=True))


def orthogonal_part(vector: Sequence[Tensor], to: Sequence[Tensor]) -> list[Tensor]:
    """The part of ``vector`` orthogonal to ``to``, all tensors together; all of it if ``to`` is zero."""
    norm = l2_norm(to)
    if norm == 0:
        return list(vector)
    unit = [t / norm.to(t) for t in to]
    along = sum((v * u).sum().to(norm.device) for v, u in zip(vector, unit, strict=True))
    return [v - u * torch.as_tensor(along).to(u) for v, u in zip(vector, unit, strict=True)]


def _sharpness(gamma: float, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
    difference = torch._foreach_sub(list(perturbed), list(gradient))
    return list(torch._foreach_mul(difference, gamma / (1.0 - gamma)))


def _check_gamma(gamma: float) -> None:
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma must be at least 0 and below 1, got {gamma}.")
