"""``SAM``: in place of ``loss.backward()``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowland.sam.ascent import Ascent
from lowland.sam.buffers import BatchNormStats
from lowland.sam.combine import Combine
from lowland.sam.deposit import deposit
from lowland.sam.gradient import Diagnostics, sam_gradient
from lowland.sam.passes import Loss

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]


class SAM:
    r"""Sharpness-aware minimization as a gradient: ``backward`` in place of ``loss.backward()``.

    The optimizer, its schedule, clipping, accumulation and mixed precision stay the user's and work as
    without SAM. Frozen parameters (``requires_grad=False``) are neither perturbed nor trained.

    Args:
        params: A module (best: its buffers are then known), parameters, named parameters, or parameter
            groups as an optimizer takes them.
        rho: Radius of the ascent; may be assigned at any time, as may the other attributes.
        m: Examples that share one perturbation; ``None`` means the whole batch.
        ascent: Where to climb, and how far; :class:`~lowland.sam.L2` by default.
        steps: Number of ascent steps.
        step_size: Size of one ascent step in units of ``rho``.
        l2: Weight of :math:`\frac\lambda2 \|w\|_2^2` inside the objective and the climb.
        combine: What to return from the gradients at :math:`w` and at :math:`w + e`; the latter if ``None``.
        bn_stats: Which passes move running statistics: ``"first"``, ``"both"`` or ``"frozen"``.
        measure: Whether ``diagnostics`` is filled after each call.

    Attributes:
        diagnostics: :class:`~lowland.sam.Diagnostics` of the last call, if ``measure``.

    See :func:`~lowland.sam.sam_gradient`, whose shell this is, for the mathematics and the errors.

    Example:
        >>> import torch.nn.functional as F
        >>> model = torch.nn.Linear(3, 2)
        >>> sam = SAM(model, rho=0.1, m=16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> def loss(x, y):
        ...     return F.cross_entropy(model(x), y)
        >>> x, y = torch.randn(64, 3), torch.randint(2, (64,))
        >>> optimizer.zero_grad()
        >>> value = sam.backward(loss, x, y)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Params,
        *,
        rho: float,
        m: int | None = None,
        ascent: Ascent | None = None,
        steps: int = 1,
        step_size: float = 1.0,
        l2: float = 0.0,
        combine: Combine | None = None,
        bn_stats: BatchNormStats = "first",
        measure: bool = False,
    ) -> None:
        self.module = params if isinstance(params, nn.Module) else None
        self.params = _tensors(params)
        self.rho = rho
        self.m = m
        self.ascent = ascent
        self.steps = steps
        self.step_size = step_size
        self.l2 = l2
        self.combine = combine
        self.bn_stats: BatchNormStats = bn_stats
        self.measure = measure
        self.diagnostics: Diagnostics | None = None

    def backward(
        self,
        loss: Loss,
        *batch: Any,
        scale: float | Tensor | torch.amp.GradScaler = 1.0,
        ascent_batch: tuple[Any, ...] | None = None,
    ) -> Any:
        """Adds the m-SAM gradient to ``.grad`` and returns the mean loss at the unperturbed weights.

        Args:
            loss: Loss of the examples it is given; see :func:`~lowland.sam.sam_gradient`.
            batch: Its arguments: tensors whose first dimension is the examples, or nested dicts, lists
                and tuples of them.
            scale: Factor on the gradients, as in ``(scale * loss).backward()``: a ``GradScaler``, or 1/k
                for accumulation over k calls.
            ascent_batch: Examples that the climb sees instead.

        Returns:
            The loss, a detached scalar (with ``l2``, including it), or ``(loss, aux)`` if ``loss``
            returns an ``aux``.
        """
        trainable = [p for p in self.params if not isinstance(p, Tensor) or p.requires_grad]
        result = sam_gradient(
            loss,
            trainable,
            batch,
            rho=self.rho,
            m=self.m,
            ascent=self.ascent,
            steps=self.steps,
            step_size=self.step_size,
            l2=self.l2,
            ascent_batch=ascent_batch,
            combine=self.combine,
            bn_stats=self.bn_stats,
            scale=_factor(scale, trainable),
            module=self.module,
            diagnostics=self.measure,
        )
        self.diagnostics = result.diagnostics
        deposit(trainable, result.gradients)
        return result.loss if result.aux is None else (result.loss, result.aux)


def _factor(scale: float | Tensor | torch.amp.GradScaler, params: list[Tensor]) -> float:
    if isinstance(scale, torch.amp.GradScaler):
        # Its own scale() prepares it for step(); get_scale() alone would not.
        device = params[0].device if params else torch.device("cpu")
        return float(scale.scale(torch.ones((), device=device)))
    return float(scale)


def _tensors(params: Params) -> list[Tensor]:
    """The parameters, each once, in order."""
    if isinstance(params, nn.Module):
        return list(params.parameters())
    if isinstance(params, (Tensor, str, Mapping)):
        raise TypeError(
            "params must be a module, or an iterable of parameters, named parameters or parameter groups, "
            f"got {type(params).__name__}."
        )
    found: list[Any] = []
    for item in params:
        if isinstance(item, Mapping):
            of_group = item["params"]
            found.extend([of_group] if isinstance(of_group, Tensor) else _tensors(of_group))
        elif isinstance(item, tuple):
            found.append(item[1])
        else:
            found.append(item)
    return list({id(p): p for p in found}.values())
