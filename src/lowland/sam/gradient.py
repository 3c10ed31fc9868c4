"""The m-SAM gradient: its arguments are checked, and the algorithm is run on every attempt of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lowland.sam.alone import Alone
from lowland.sam.arguments import (
    Engine,
    check_batch,
    check_choices,
    check_engine,
    check_loss,
    check_numbers,
    check_params,
    check_rho,
    loss_arguments,
    names_of,
)
from lowland.sam.ascent import L2, Ascent, BlindAscent
from lowland.sam.batch import UNNAMED, Entries, MicroBatches
from lowland.sam.before import undone_on_error
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.captures import Captures, reason_against, refuse_recording
from lowland.sam.climbing import Climbing
from lowland.sam.combine import Combine
from lowland.sam.containers import tensors_of
from lowland.sam.deposit import tensor_hooks_held
from lowland.sam.engine import Plan
from lowland.sam.functional import Functional
from lowland.sam.grouped import Grouped
from lowland.sam.held import Options, held
from lowland.sam.leaves import OtherLeaves
from lowland.sam.named import modules_named_by
from lowland.sam.noise import Noise
from lowland.sam.normalized import warn_of_single_examples
from lowland.sam.objective import Loss, Objective, Reduction, Weight
from lowland.sam.precision import HALF
from lowland.sam.radii import Radii
from lowland.sam.randomness import advance_generators
from lowland.sam.ranks import own_share, require_alike
from lowland.sam.reductions import Unreduced, refuse_joined
from lowland.sam.total import SAMGradient, Then, Total
from lowland.sam.vectors import Shown
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
    reduction: Reduction = "mean",
    shared: Sequence[str] = (),
    rows: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
    engine: Engine = "auto",
    max_memory: int | None = None,
    diagnostics: bool = False,
    captures: Captures | None = None,
    then: Then | None = None,
) -> SAMGradient:
    r"""Gradient of the m-SAM objective.

    The batch is cut into groups :math:`S` of ``m`` examples, and each climbs to its own worst case
    (Foret et al., 2021, eq. 3; Andriushchenko & Flammarion, 2022, eq. 4):

    .. math::
        \sum_S \frac{|S|}{B}\, \nabla L_S(w + e_S), \qquad
        e_S = \rho\, \frac{g_S}{\|g_S\|_2}, \quad g_S = \nabla L_S(w).

    It is that of this process: a ``DistributedDataParallel`` that the loss runs reduces nothing.
    :meth:`SAM.backward` has it reduce the result.

    Both passes of a group see the same random draws. A group whose gradient is not finite is not
    climbed: that gradient is returned as it is, so that the caller can see it and skip the step.

    Args:
        loss: ``loss(*group)`` is the mean loss of the examples it is given, at the current ``params``: a
            scalar (their sum, with ``reduction="sum"``), or one value per example, or either with an ``aux``
            beside it, ``(loss, aux)``. Or a :class:`~lowland.sam.Functional`, for functional SAM.
        params: The weights :math:`w`, leaf tensors that require gradients, or a mapping from their names;
            unchanged, bit for bit, on return and on error.
        batch: The loss's arguments: with ``m``, tensors of first dimension B, or nested dicts, lists and
            tuples of them, beside single things (numbers, strings, ``None``), which every group is given as
            they are; without ``m``, anything. Or :class:`~lowland.sam.MicroBatches` of such. A loss may
            change its arguments: each pass sees them as they were, and they are left as one plain pass
            leaves them.
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
        reduction: ``"sum"`` for a loss that adds up its examples: the gradient and the loss are then those
            of the sum over the batch, and a climb is along the mean over its group, whatever m.
        shared: Names of entries of the batch that every group is given whole: ``"1"`` for the second
            argument, ``"0.mask"`` or ``"mask"`` for an entry of a dict.
        rows: Names of entries whose elements are examples, where that cannot be seen: sequences.
        module: The module that ``loss`` runs, if there is one to name; any other is found as it runs.
        process_group: Processes that climb together, along the mean of their gradients, with the same random
            numbers of ascents and of rounding: ``m`` then counts examples over all of them, an equal share of
            each group from each, and with ``None`` the group is the whole batch of all. All must call at the
            same time, with the same number of groups. By default each process climbs by itself.
        engine: ``"loop"`` runs the groups one after the other; ``"batched"`` all at once, in one pass over
            the batch, with the same result; ``"auto"`` whichever is faster, and the loop, with a warning,
            for what cannot be run at once.
        max_memory: Bytes above the weights that running groups at once may take, as one group tells: they
            are run in as many chunks as that needs. ``None`` for 1.05 times what plain training with Adam
            takes for the batch, weights and Adam's state included, or 32 MiB above the weights if that is
            more. The loop does not read it.
        diagnostics: Whether to return :class:`Diagnostics`.
        captures: Steps that were recorded in calls before, with which groups at once are run; see
            :class:`~lowland.sam.Captures`. ``None`` records nothing.
        then: Is given the result before the call ends: if it fails, everything is put back as if there had
            been no call.

    Returns:
        The gradients, the loss at :math:`w`, and what was asked for beside them.

    Raises:
        TypeError: If ``params``, ``batch`` or what ``loss`` returns is of the wrong kind.
        ValueError: If a number is out of its range, shapes do not match, ``loss`` depends on none of the
            ``params``, or touches none of its arguments although ``m`` cuts them, if ``max_memory`` is
            less than what one group at a time takes, or if steps that cannot be are to be recorded.
        RuntimeError: If another thread is at work on the same ``params``.

    Example:
        >>> import torch
        >>> from lowland import sam_gradient
        >>> a, b = (torch.tensor([1.0], requires_grad=True) for _ in range(2))
        >>> def loss(x):  # the mean of x, times a quadratic of the gradient (3, 4) and the Hessian diag(3, 4)
        ...     return x.mean() * (3.0 * a.square() + 4.0 * b.square()).sum() / 2
        >>> result = sam_gradient(loss, [a, b], (torch.tensor([0.5, 1.5]),), rho=0.1, m=1)
        >>> [round(g.item(), 4) for g in result.gradients]  # at 1 + 0.1 * 3 / 5 and 1 + 0.1 * 4 / 5
        [3.18, 4.32]
        >>> result.loss
        tensor(3.5000)
    """
    names = list(params) if isinstance(params, Mapping) else None
    params = list(params.values()) if isinstance(params, Mapping) else list(params)
    ascent = L2() if ascent is None else ascent
    check_params(params)
    check_loss(loss, ascent)
    check_numbers(m=m, steps=steps, step_size=step_size, l2=l2, scale=scale)
    check_rho(rho, len(params))
    check_engine(engine, max_memory)
    check_choices(ascent, bn_stats, steps, ascent_batch, combine, reduction)
    radii = Radii.of(rho, len(params))
    entries = Entries(names_of("shared", shared), names_of("rows", rows)) if shared or rows else UNNAMED
    if captures is not None:
        in_half = any(params[i].dtype in HALF for i in radii.indices)
        why = reason_against(ascent, engine=engine, reduction=reduction, weight=weight, in_half=in_half)
        refuse_recording(captures.mode, why)
    groups, sources = _groups(batch, ascent_batch, own_share(m, process_group), entries, params)
    asked = Options(loss, batch, ascent, engine, process_group, combine, ascent_batch, captures, max_memory)
    hold = held(module, params, asked)
    if then is not None and m is not None:
        then.check(sum(filter(None, groups.sizes)))
    warn_of_single_examples(module, groups, params[0])
    alike = True
    if process_group is not None:
        refuse_joined((module, *modules_named_by(loss)))
        alike = require_alike(process_group, weight, groups.sizes, params[0].device)
    total = Total()
    reductions = Unreduced(process_group) if then is None else then.reductions
    buffers = Buffers(module, modules_named_by(loss), hold.trained, reductions)
    others = OtherLeaves([*params, *hold.names_too], loss)
    workspace = Workspace() if then is None else then.workspace
    with (
        Alone(params, "params must be at work in one thread at a time, got a call in another.", nested=True),
        buffers.unwatched_on_error(),
        undone_on_error(params, buffers, workspace, unless=None if then is None else then.done),
    ):
        with torch.enable_grad(), tensor_hooks_held(params):
            noise = _noise(ascent, radii, hold.params, process_group)
            if isinstance(sources, MicroBatches) and radii.move:
                advance_generators()  # passes are replayed, but a loader is to shuffle and augment anew
            at = Shown.all_that_move(radii, hold.params, names)
            both, in_halves = combine is not None or diagnostics, isinstance(loss, Functional)
            how = Climbing(ascent, radii, at, steps, step_size, both, noise, in_halves)
            objective = Objective(
                loss,
                hold.params,
                buffers,
                bn_stats=bn_stats,
                scale=scale,
                weight=weight,
                reduction=reduction,
                workspace=workspace,
                measure=diagnostics,
                others=others,
                names_too=hold.names_too,
            )
            plan = Plan(
                *(objective, how, l2, total, groups, sources, engine, max_memory, process_group),
                combines=combine is not None,
                captures=captures,
            )
            with hold.at_work(deposits=then is not None and then.deposits):
                for attempt in hold.planned(plan, alike=alike).attempts():
                    with attempt.block:
                        attempt.found = attempt.run()
                result = total.result(params, combine, times=plan.times)
                result.gradients[:] = hold.gradients(result.gradients, l2 * scale)
        if then is not None:
            then(result)
    groups.carry_over()
    others.say(tensors_of([*groups.parts]), buffers.modules())
    return result


def _groups(
    batch: Any, ascent_batch: Any, m: int | None, entries: Entries, params: list[Tensor]
) -> tuple[Grouped, Grouped | MicroBatches | None]:
    """The groups, and those that the climbs see in their place."""
    batch = loss_arguments("batch", batch)
    check_batch(batch, params)
    groups = Grouped(batch, m, entries)
    if ascent_batch is None:
        return groups, None
    found = loss_arguments("ascent_batch", ascent_batch)
    check_batch(found, params)
    return groups, found if isinstance(found, MicroBatches) else Grouped(found, m, entries)


def _noise(
    ascent: Ascent | BlindAscent, radii: Radii, params: list[Tensor], process_group: ProcessGroup | None
) -> Noise | None:
    """Randomness, if some is needed: drawing it advances the default generator."""
    rounding = any(params[i].dtype in HALF for i in radii.indices)
    if not radii.move or not (rounding or getattr(ascent, "random", False)):
        return None
    return Noise.draw(process_group, params[0].device)
