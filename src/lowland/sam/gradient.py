"""The m-SAM gradient: its definition, one group after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lowland.sam.ascent import L2, Ascent, BlindAscent, StartingAscent
from lowland.sam.average import Average, Gradients, dense
from lowland.sam.batch import MicroBatches, groups_of, join
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.climb import Climber, Radii
from lowland.sam.combine import Combine
from lowland.sam.deposit import refuse_unreducible, tensor_hooks_held
from lowland.sam.diagnostics import Diagnostics, GroupDiagnostics, together
from lowland.sam.group import GroupPasses, Source, run_group
from lowland.sam.noise import Noise
from lowland.sam.passes import Loss, Passes, Weight
from lowland.sam.precision import is_half
from lowland.sam.ranks import require_equal_groups
from lowland.sam.workspace import Workspace


@dataclass(frozen=True)
class SAMGradient:
    """What :func:`sam_gradient` returns.

    Attributes:
        gradients: One tensor per parameter, times ``scale``; ``None`` for a parameter that the loss did
            not use in any group.
        loss: Mean objective of the batch at the unperturbed weights, without ``scale``; at the perturbed
            ones with an ascent that needs no gradient, unless ``combine`` or ``diagnostics`` ask for more.
        aux: What the loss returned beside its value at the unperturbed weights, joined over the groups:
            tensors along their first dimension, scalars as a vector; ``None`` if it returned a value only.
        diagnostics: Per group; ``None`` unless asked for.
        climb_gradients: Gradients that the climbs started from, averaged over the groups, without
            ``scale``, of the parameters with a radius; ``None`` unless the ascent remembers them, and if
            one was not finite.
    """

    gradients: list[Tensor | None]
    loss: Float[Tensor, ""]
    aux: Any
    diagnostics: Diagnostics | None
    climb_gradients: list[Tensor] | None = None


def sam_gradient(
    loss: Loss,
    params: Sequence[Tensor] | Mapping[str, Tensor],
    batch: Sequence[Any] | MicroBatches,
    *,
    rho: float | Sequence[float],
    m: int | None = None,
    ascent: Ascent | BlindAscent | None = None,
    steps: int = 1,
    step_size: float = 1.0,
    l2: float = 0.0,
    ascent_batch: Sequence[Any] | MicroBatches | None = None,
    combine: Combine | None = None,
    bn_stats: BatchNormStats = "first",
    scale: float = 1.0,
    weight: Weight | None = None,
    module: nn.Module | None = None,
    process_group: ProcessGroup | None = None,
    workspace: Workspace | None = None,
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
        params: The weights :math:`w`, leaf tensors that require gradients, or a mapping from their names;
            unchanged, bit for bit, on return and on error.
        batch: The loss's arguments: tensors of first dimension B, or nested dicts, lists and tuples of
            them; or :class:`~lowland.sam.MicroBatches` of such.
        rho: Radius :math:`\rho` of the ascent, in the ascent's norm; 0 gives the plain gradient. Or one
            radius per parameter: those with 0 are not perturbed, and the ascent sees the others only, so
            that its norm is theirs; different radii :math:`\rho_i` scale the parts of the ascent's
            perturbation by :math:`\rho_i / \max_j \rho_j`.
        m: Examples that share one perturbation; ``None``, and any m above B, means the whole batch. A
            last group with fewer examples is weighted by its size.
        ascent: Where to climb, and how far; :class:`~lowland.sam.L2` by default.
        steps: Number of ascent steps, each from a new gradient.
        step_size: Size of one ascent step in units of ``rho``.
        l2: Weight :math:`\lambda` of :math:`\frac\lambda2 \|w\|_2^2` over all ``params``, inside the
            objective and so in the climb too, as in the paper.
        ascent_batch: Examples that the climb sees instead of ``batch``; the i-th group climbs on its i-th
            group of ``m``, from the start again where there are fewer (MaxSum SAM, with the previous
            batch). :class:`~lowland.sam.MicroBatches` are one group, on which all climb together (n-SAM,
            with the training set). One more forward pass then evaluates the loss of ``batch`` at :math:`w`.
        combine: What to return from the averaged gradients at :math:`w` and at :math:`w + e`; ``None``
            is the latter.
        bn_stats: Which passes move running statistics and other buffers: ``"first"`` the unperturbed
            one of ``batch``, ``"both"`` all of them, ``"frozen"`` none.
        scale: Factor on the returned gradients (a GradScaler's, or 1/k for accumulation). Both passes
            are scaled, the climb and the returned loss are not.
        weight: ``weight(*group)`` is the group's weight in the mean over groups, in place of its number of
            examples: its number of tokens, say. A group of weight 0 is left out.
        module: The module that ``loss`` runs, if there is one to name; otherwise the modules are found
            as they run.
        process_group: Processes whose i-th groups climb together, along the mean of their gradients, so that
            m spans them; ``None`` for climbs of each process by itself. All must call at the same time,
            with the same number of groups.
        workspace: Memory to be reused from call to call; allocated if not given.
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
    names = list(params) if isinstance(params, Mapping) else None
    params = list(params.values()) if isinstance(params, Mapping) else list(params)
    ascent = L2() if ascent is None else ascent
    _check_params(params)
    _check_numbers(m=m, steps=steps, step_size=step_size, l2=l2, scale=scale)
    _check_rho(rho, len(params))
    _check_choices(ascent, bn_stats, steps, ascent_batch, combine)
    radii = Radii.of(rho, len(params))
    climber = Climber(ascent, radii, steps, step_size, names, diagnostics, process_group)
    groups = groups_of(_arguments("batch", batch), m)
    sources = _sources(ascent_batch, m, len(groups))
    refuse_unreducible(module, params, len(groups))
    if process_group is not None:
        if weight is not None:
            raise ValueError("weight must be None with process_group, got a function.")
        require_equal_groups(process_group, len(groups), params[0].device)
    gradient_at_weights = combine is not None or diagnostics
    total = _Total(keep_unperturbed=combine is not None, measure=diagnostics)
    with torch.enable_grad(), tensor_hooks_held(params):
        passes = Passes(
            loss,
            params,
            l2,
            scale,
            bn_stats,
            Buffers(module),
            weight,
            None,
            workspace or Workspace(),
            diagnostics,
        )
        with passes.undone_on_error():
            passes = replace(passes, noise=_noise(ascent, radii, params))
            for i, group in enumerate(groups):
                size = sum(passes.mass(part) for part in group)
                if size > 0.0:
                    source = sources[i % len(sources)] if sources else None
                    found = run_group(passes, climber, group, source, gradient_at_weights=gradient_at_weights)
                    total.add(size, found)
            return total.result(params, combine)


def _noise(ascent: Ascent | BlindAscent, radii: Radii, params: list[Tensor]) -> Noise | None:
    """Randomness, if some is needed: drawing it advances the default generator."""
    rounding = any(is_half(params[i]) for i in radii.indices)
    return Noise.draw() if radii.rho > 0.0 and (rounding or getattr(ascent, "random", False)) else None


def _sources(
    ascent_batch: Sequence[Any] | MicroBatches | None, m: int | None, num_groups: int
) -> list[Source]:
    if ascent_batch is None:
        return []
    if isinstance(ascent_batch, MicroBatches):
        return [Source(ascent_batch, shared=True)]
    groups = groups_of(_arguments("ascent_batch", ascent_batch), m)
    return [Source(group, shared=len(groups) < num_groups) for group in groups[:num_groups]]


class _Total:
    """Means over groups, each weighted by its share of the examples."""

    def __init__(self, *, keep_unperturbed: bool, measure: bool) -> None:
        self._keep_unperturbed = keep_unperturbed
        self._measure = measure
        self._perturbed, self._unperturbed = Average(), Average()
        self._climb_gradients, self._losses = Average(), Average()
        self._aux: list[Any] = []
        self._rows: list[GroupDiagnostics] = []
        self._climbed = False
        self._all_finite = True

    def add(self, size: float, group: GroupPasses) -> None:
        self._perturbed.add(group.perturbed.gradients, size)
        if self._keep_unperturbed:
            self._unperturbed.add(group.at_weights.gradients, size)
        if group.climb.gradients is not None:
            self._climb_gradients.add(group.climb.gradients, size)
        self._losses.add([group.at_weights.loss], size)
        self._aux.append(group.at_weights.aux)
        self._climbed = self._climbed or group.climb.move is not None
        self._all_finite = self._all_finite and group.climb.not_finite is None
        if self._measure:
            self._rows.append(GroupDiagnostics.of(size, group))

    def result(self, params: list[Tensor], combine: Combine | None) -> SAMGradient:
        if self._losses.weight == 0.0:
            raise ValueError("batch must hold at least one example of positive weight, got none.")
        (loss,) = self._losses.result()
        assert loss is not None
        gradients = [
            None if g is None else g.to(p.dtype)
            for g, p in zip(self._combined(params, combine), params, strict=True)
        ]
        remembered = [g for g in self._climb_gradients.result() if g is not None]
        return SAMGradient(
            gradients,
            loss,
            join(self._aux),
            together(self._rows) if self._measure else None,
            remembered if remembered and self._all_finite else None,
        )

    @torch.no_grad()
    def _combined(self, params: list[Tensor], combine: Combine | None) -> Gradients:
        perturbed = self._perturbed.result()
        if combine is None or not self._climbed:
            return perturbed
        unperturbed = self._unperturbed.result()
        combined = combine(dense(unperturbed, params), dense(perturbed, params))
        used = [a is not None or b is not None for a, b in zip(unperturbed, perturbed, strict=True)]
        return [g if u else None for g, u in zip(combined, used, strict=True)]


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


def _check_numbers(*, m: int | None, steps: int, step_size: float, l2: float, scale: float) -> None:
    if not (math.isfinite(l2) and l2 >= 0):
        raise ValueError(f"l2 must be non-negative and finite, got {l2}.")
    for name, value in (("step_size", step_size), ("scale", scale)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    for name, count in (("m", 1 if m is None else m), ("steps", steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive whole number, got {count!r}.")


def _check_rho(rho: float | Sequence[float], num_params: int) -> None:
    radii = [rho] if isinstance(rho, (int, float)) else list(rho)
    if not isinstance(rho, (int, float)) and len(radii) != num_params:
        raise ValueError(f"rho must be one radius or one per parameter, {num_params}, got {len(radii)}.")
    for radius in radii:
        if not (math.isfinite(radius) and radius >= 0):
            raise ValueError(f"rho must be non-negative and finite, got {radius}.")


def _check_choices(
    ascent: Ascent | BlindAscent,
    bn_stats: str,
    steps: int,
    ascent_batch: Sequence[Any] | MicroBatches | None,
    combine: Combine | None,
) -> None:
    if bn_stats not in get_args(BatchNormStats):
        raise ValueError(f"bn_stats must be one of {get_args(BatchNormStats)}, got {bn_stats!r}.")
    name = type(ascent).__name__
    if isinstance(ascent, StartingAscent):
        if steps > 1:
            raise ValueError(f"steps must be 1 with {name}, which starts elsewhere, got {steps}.")
        if combine is not None:
            raise ValueError(f"combine must be None with {name}, which starts elsewhere, got {combine!r}.")
    if isinstance(ascent, BlindAscent):
        if steps > 1:
            raise ValueError(f"steps must be 1 with {name}, which needs no gradient, got {steps}.")
        if ascent_batch is not None:
            raise ValueError(f"ascent_batch must be None with {name}, which needs no gradient, got a batch.")
    elif not callable(ascent):
        raise TypeError(f"ascent must be an Ascent or a BlindAscent, got {type(ascent).__name__}.")


def _arguments(name: str, batch: Any) -> Sequence[Any] | MicroBatches:
    if isinstance(batch, (tuple, list, MicroBatches)):
        return batch
    raise TypeError(
        f"{name} must be the tuple of the loss's arguments or MicroBatches, got {type(batch).__name__}."
    )
