"""The m-SAM gradient: its definition, one group after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lowland.sam.arguments import (
    Engine,
    check_choices,
    check_engine,
    check_numbers,
    check_params,
    check_rho,
    loss_arguments,
)
from lowland.sam.ascent import L2, Ascent, BlindAscent
from lowland.sam.batch import MicroBatches
from lowland.sam.batched.engine import Engines
from lowland.sam.batched.grouped import Grouped
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.climb import Climber, Radii
from lowland.sam.combine import Combine
from lowland.sam.deposit import refuse_unreducible, tensor_hooks_held
from lowland.sam.noise import Noise
from lowland.sam.passes import Loss, Passes, Weight
from lowland.sam.precision import is_half
from lowland.sam.ranks import require_equal_groups
from lowland.sam.total import SAMGradient, Total
from lowland.sam.workspace import Workspace


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
    engine: Engine = "auto",
    max_memory: int | None = None,
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
            m spans them, with the same random numbers of ascents and of rounding; ``None`` for climbs of each
            process by itself. All must call at the same time, with the same number of groups.
        engine: ``"loop"`` runs the groups one after the other; ``"batched"`` all at once, in one pass over
            the batch, with the same result; ``"auto"`` whichever is faster, and the loop, with a warning,
            for what cannot be run at once.
        max_memory: Bytes that running groups at once may take: they are run in as many chunks as that
            needs. ``None`` for twice what one perturbation for the whole batch would take.
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
    check_params(params)
    check_numbers(m=m, steps=steps, step_size=step_size, l2=l2, scale=scale)
    check_rho(rho, len(params))
    check_engine(engine, max_memory)
    check_choices(ascent, bn_stats, steps, ascent_batch, combine)
    radii = Radii.of(rho, len(params))
    climber = Climber(ascent, radii, steps, step_size, names, diagnostics, process_group)
    groups = Grouped(loss_arguments("batch", batch), m)
    sources: Grouped | MicroBatches | None = None
    if ascent_batch is not None:
        found = loss_arguments("ascent_batch", ascent_batch)
        sources = found if isinstance(found, MicroBatches) else Grouped(found, m)
    refuse_unreducible(module, params, len(groups))
    if process_group is not None:
        if weight is not None:
            raise ValueError("weight must be None with process_group, got a function.")
        require_equal_groups(process_group, len(groups), params[0].device)
    gradient_at_weights = combine is not None or diagnostics
    total = Total(keep_unperturbed=combine is not None, measure=diagnostics)
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
            passes = replace(passes, noise=_noise(ascent, radii, params, process_group))
            if isinstance(ascent_batch, MicroBatches) and radii.rho > 0.0:
                Noise.draw()  # passes are replayed, but a loader is to shuffle and augment anew in each call
            Engines(passes, climber, total, groups, sources, engine, max_memory, gradient_at_weights).run()
            return total.result(params, combine)


def _noise(
    ascent: Ascent | BlindAscent, radii: Radii, params: list[Tensor], process_group: ProcessGroup | None
) -> Noise | None:
    """Randomness, if some is needed: drawing it advances the default generator."""
    rounding = any(is_half(params[i]) for i in radii.indices)
    if radii.rho == 0.0 or not (rounding or getattr(ascent, "random", False)):
        return None
    return Noise.draw(process_group, params[0].device)
