"""The m-SAM gradient: its definition, one group after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lowland.sam.ascent import L2, Ascent
from lowland.sam.batch import batch_size, group_slices, join, take
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.combine import Combine
from lowland.sam.deposit import refuse_unreducible, tensor_hooks_held
from lowland.sam.group import Climber, GroupPasses, run_group
from lowland.sam.norm import l2_norm
from lowland.sam.passes import Loss, Passes


@dataclass(frozen=True)
class Diagnostics:
    """What each group's climb did; every field has one entry per group, in order.

    Attributes:
        group_size: Number of examples in the group.
        loss: The group's objective at the unperturbed weights (with ``l2``, including it).
        perturbed_loss: The same at the perturbed weights; equal to ``loss`` where nothing was climbed.
        gradient_norm: The l2 norm of the gradient that the climb started from.
        perturbation_norm: The l2 norm of the perturbation.
        climbed: Whether there was anywhere to climb; false for a zero or a non-finite gradient.
    """

    group_size: Int[Tensor, " groups"]
    loss: Float[Tensor, " groups"]
    perturbed_loss: Float[Tensor, " groups"]
    gradient_norm: Float[Tensor, " groups"]
    perturbation_norm: Float[Tensor, " groups"]
    climbed: Bool[Tensor, " groups"]

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        """Rise of the loss in the climb, averaged over examples: the one-step m-sharpness."""
        weight = self.group_size.to(self.loss) / self.group_size.sum()
        return (weight * (self.perturbed_loss - self.loss)).sum()


@dataclass(frozen=True)
class SAMGradient:
    """What :func:`sam_gradient` returns.

    Attributes:
        gradients: One tensor per parameter, times ``scale``; ``None`` for a parameter that the loss did
            not use in any group.
        loss: Mean objective of the batch at the unperturbed weights, without ``scale``.
        aux: What the loss returned beside its value at the unperturbed weights, joined over the groups:
            tensors along their first dimension, scalars as a vector; ``None`` if it returned a value only.
        diagnostics: Per group; ``None`` unless asked for.
    """

    gradients: list[Tensor | None]
    loss: Float[Tensor, ""]
    aux: Any
    diagnostics: Diagnostics | None


def sam_gradient(
    loss: Loss,
    params: Sequence[Tensor],
    batch: Sequence[Any],
    *,
    rho: float,
    m: int | None = None,
    ascent: Ascent | None = None,
    steps: int = 1,
    step_size: float = 1.0,
    l2: float = 0.0,
    ascent_batch: Sequence[Any] | None = None,
    combine: Combine | None = None,
    bn_stats: BatchNormStats = "first",
    scale: float = 1.0,
    module: nn.Module | None = None,
    diagnostics: bool = False,
) -> SAMGradient:
    r"""Gradient of the m-SAM objective.

    The batch is cut into groups :math:`S` of ``m`` examples, and each climbs to its own worst case
    (Foret et al., 2021, eq. 3; Andriushchenko & Flammarion, 2022, eq. 4):

    .. math::
        \sum_S \frac{|S|}{B}\, \nabla L_S(w + e_S), \qquad
        e_S = \rho\, \frac{g_S}{\|g_S\|_2}, \quad g_S = \nabla L_S(w).

    Both passes of a group see the same random draws. A group whose gradient is not finite is not
    climbed: that gradient is returned as it is, so that the caller can see it and skip the step.

    Args:
        loss: ``loss(*group)`` is the loss of the examples it is given, at the current ``params``: a
            scalar, or one value per example (the mean is taken), or either with an ``aux`` beside it,
            ``(loss, aux)``.
        params: The weights :math:`w`, leaf tensors that require gradients; unchanged, bit for bit, on
            return and on error.
        batch: The loss's arguments: tensors of first dimension B, or nested dicts, lists and tuples of
            them.
        rho: Radius :math:`\rho` of the ascent, in the ascent's norm; 0 gives the plain gradient.
        m: Examples that share one perturbation; ``None``, and any m above B, means the whole batch. A
            last group with fewer examples is weighted by its size.
        ascent: Where to climb, and how far; :class:`~lowland.sam.L2` by default.
        steps: Number of ascent steps, each from a new gradient.
        step_size: Size of one ascent step in units of ``rho``.
        l2: Weight :math:`\lambda` of :math:`\frac\lambda2 \|w\|_2^2` over all ``params``, inside the
            objective and so in the climb too, as in the paper.
        ascent_batch: Examples that the climb sees instead of ``batch``, as many of them; the i-th group
            climbs on its i-th group (MaxSum SAM, with the previous batch). One more forward pass then
            evaluates the loss of ``batch`` at :math:`w`.
        combine: What to return from the averaged gradients at :math:`w` and at :math:`w + e`; ``None``
            is the latter.
        bn_stats: Which passes move running statistics and other buffers: ``"first"`` the unperturbed
            one of ``batch``, ``"both"`` all of them, ``"frozen"`` none.
        scale: Factor on the returned gradients (a GradScaler's, or 1/k for accumulation). Both passes
            are scaled, the climb and the returned loss are not.
        module: The module that ``loss`` runs, if there is one to name; otherwise the modules are found
            as they run.
        diagnostics: Whether to return :class:`Diagnostics`.

    Raises:
        TypeError: If ``params``, ``batch`` or what ``loss`` returns is of the wrong kind.
        ValueError: If a number is out of its range or shapes do not match.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, 3.0]))
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> def loss(x):
        ...     return 0.5 * (w @ A @ w) + 0.0 * x.sum()
        >>> result = sam_gradient(loss, [w], (torch.zeros(4),), rho=0.1)
        >>> g = A @ w.detach()
        >>> torch.allclose(result.gradients[0], A @ (w.detach() + 0.1 * g / g.norm()))
        True
    """
    params = list(params)
    _check_params(params)
    _check_numbers(rho=rho, m=m, steps=steps, step_size=step_size, l2=l2, scale=scale)
    if bn_stats not in get_args(BatchNormStats):
        raise ValueError(f"bn_stats must be one of {get_args(BatchNormStats)}, got {bn_stats!r}.")
    num_examples = _check_batches(batch, ascent_batch)

    passes = Passes(loss, params, l2, scale, bn_stats, Buffers(module))
    climber = Climber(ascent or L2(), rho, steps, step_size, measure=diagnostics)
    total = _Total(num_examples, keep_unperturbed=combine is not None, measure=diagnostics)
    groups = group_slices(num_examples, m)
    refuse_unreducible(module, len(groups))
    with torch.enable_grad(), tensor_hooks_held(params), passes.undone_on_error():
        for rows in groups:
            source = None if ascent_batch is None else take(ascent_batch, rows)
            group = run_group(
                passes, climber, take(batch, rows), source, gradient_at_weights=combine is not None
            )
            total.add(rows.stop - rows.start, group)
        return SAMGradient(
            total.gradients(combine),
            total.loss(),
            total.aux(),
            total.diagnostics() if diagnostics else None,
        )


class _Total:
    """Sums over groups, each weighted by its share of the examples."""

    def __init__(self, num_examples: int, *, keep_unperturbed: bool, measure: bool) -> None:
        self._num_examples = num_examples
        self._keep_unperturbed = keep_unperturbed
        self._measure = measure
        self._perturbed: list[Tensor] = []
        self._unperturbed: list[Tensor] = []
        self._used: list[bool] = []
        self._aux: list[Any] = []
        self._losses: list[Tensor] = []
        self._perturbed_losses: list[Tensor] = []
        self._rows: list[tuple[int, float, float]] = []

    @torch.no_grad()
    def add(self, size: int, group: GroupPasses) -> None:
        weight = size / self._num_examples
        self._perturbed = _accumulate(self._perturbed, group.perturbed.gradients, weight)
        if self._keep_unperturbed:
            self._unperturbed = _accumulate(self._unperturbed, group.at_weights.gradients, weight)
        used = group.perturbed.used
        if self._keep_unperturbed:
            used = [a or b for a, b in zip(used, group.at_weights.used, strict=True)]
        self._used = [a or b for a, b in zip(self._used, used, strict=True)] if self._used else used
        self._aux.append(group.at_weights.aux)
        self._losses.append(group.at_weights.loss)
        climbed = group.climb.e is not None
        self._perturbed_losses.append(group.perturbed.loss if climbed else group.at_weights.loss)
        length = l2_norm(group.climb.e).item() if self._measure and group.climb.e is not None else 0.0
        self._rows.append((size, group.climb.gradient_norm, length))

    @torch.no_grad()
    def gradients(self, combine: Combine | None) -> list[Tensor | None]:
        combined = self._perturbed if combine is None else combine(self._unperturbed, self._perturbed)
        return [g if used else None for g, used in zip(combined, self._used, strict=True)]

    def loss(self) -> Tensor:
        if len(self._losses) == 1:
            return self._losses[0]
        losses = torch.stack(self._losses)
        weights = torch.tensor([size for size, _, _ in self._rows]).to(losses) / self._num_examples
        return (weights * losses).sum()

    def aux(self) -> Any:
        return join(self._aux)

    def diagnostics(self) -> Diagnostics:
        loss = torch.stack(self._losses)
        sizes, norms, lengths = zip(*self._rows, strict=True)
        return Diagnostics(
            group_size=torch.tensor(sizes, device=loss.device),
            loss=loss,
            perturbed_loss=torch.stack(self._perturbed_losses),
            gradient_norm=torch.tensor(norms, dtype=torch.float64).to(loss),
            perturbation_norm=torch.tensor(lengths, dtype=torch.float64).to(loss),
            climbed=torch.tensor(lengths, device=loss.device) > 0,
        )


def _accumulate(total: list[Tensor], gradients: list[Tensor], weight: float) -> list[Tensor]:
    if not total:
        return gradients if weight == 1.0 else list(torch._foreach_mul(gradients, weight))
    torch._foreach_add_(total, gradients, alpha=weight)
    return total


def _check_params(params: Sequence[Tensor]) -> None:
    if not params:
        raise ValueError("params must hold at least one tensor that requires a gradient, got none.")
    for p in params:
        if not isinstance(p, Tensor):
            raise TypeError(f"params must be tensors, got {type(p).__name__}.")
        if not p.is_floating_point():
            raise TypeError(f"params must be real floating-point tensors, got {p.dtype}.")
        if not (p.is_leaf and p.requires_grad):
            raise ValueError(
                "params must be leaf tensors that require gradients, "
                f"got is_leaf={p.is_leaf} and requires_grad={p.requires_grad}."
            )
    if len({id(p) for p in params}) < len(params):
        raise ValueError("params must be different tensors, got one twice.")


def _check_numbers(
    *, rho: float, m: int | None, steps: int, step_size: float, l2: float, scale: float
) -> None:
    for name, value in (("rho", rho), ("l2", l2)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be non-negative and finite, got {value}.")
    for name, value in (("step_size", step_size), ("scale", scale)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    for name, count in (("m", 1 if m is None else m), ("steps", steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive whole number, got {count!r}.")


def _check_batches(batch: Sequence[Any], ascent_batch: Sequence[Any] | None) -> int:
    """The number of examples in ``batch``."""
    for name, value in (("batch", batch), ("ascent_batch", () if ascent_batch is None else ascent_batch)):
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{name} must be the tuple of the loss's arguments, got {type(value).__name__}.")
    num_examples = batch_size(batch)
    if ascent_batch is not None and batch_size(ascent_batch) != num_examples:
        raise ValueError(
            f"ascent_batch must hold as many examples as batch, {num_examples}, "
            f"got {batch_size(ascent_batch)}."
        )
    return num_examples
