"""Gradient norms, and the rise of the loss in SAM's own climb."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowland.errors import InputError
from lowland.sam import Captures, SAMGradient, sam_gradient
from lowland.sam.arguments import Engine
from lowland.sam.ascent import Ascent
from lowland.sharpness.averaged import Reduction, averaged
from lowland.sharpness.kept import generators_kept
from lowland.sharpness.measurement import Measurement, dtype_name, mean_over_groups
from lowland.sharpness.objective import Batch, Loss, Params, listed_params, require_some


def gradient_norms(
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    m: int | None = 1,
    reduction: Reduction = "mean",
    engine: Engine = "auto",
    captures: Captures | None = None,
    module: nn.Module | None = None,
) -> Measurement:
    r"""Mean l2 norm of the gradients of groups of ``m`` examples; ``groups`` has each of them.

    With the batched engine the norms of all groups come from one pass, without their gradients (*ghost
    norms*).

    Args:
        loss: The mean loss of the examples it is given, as for :func:`lowland.sam_gradient`, and so are the
            arguments that are not named here.
        params: The parameters; unchanged, and so are their ``.grad``, buffers and random generators.
        batch: The examples.
        m: Examples in a group; ``None`` for one group of all, whose norm is that of the whole gradient.
        reduction: ``"sum"`` for a loss that adds up its examples instead: it is divided by their number.
        engine: How the groups are run.
        captures: Steps that were recorded before, if steps are to be.
        module: The module that ``loss`` runs.

    Returns:
        The mean norm, with its standard error over groups.

    Raises:
        InputError: If the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import gradient_norms
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return 0.5 * x.mean() * sum(t.square().sum() for t in w)
        >>> found = gradient_norms(loss, w, (torch.tensor([1.0, 3.0]),))
        >>> round(found.value, 4), [round(norm, 4) for norm in found.groups.tolist()]
        (10.0, [5.0, 15.0])
    """
    found = _climbed(
        averaged(loss, reduction),
        params,
        batch,
        rho=0.0,
        m=m,
        engine=engine,
        captures=captures,
        module=module,
    )
    assert found.diagnostics is not None
    return _over_groups("gradient norm", found, found.diagnostics.gradient_norm, params, {"m": m})


def one_step_sharpness(
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    rho: float,
    m: int | None = None,
    ascent: Ascent | None = None,
    steps: int = 1,
    step_size: float = 1.0,
    reduction: Reduction = "mean",
    engine: Engine = "auto",
    captures: Captures | None = None,
    module: nn.Module | None = None,
) -> Measurement:
    r"""Rise of the loss in SAM's climb, :math:`L_S(w + e_S) - L_S(w)`, averaged over groups of m examples.

    It is what SAM's objective adds to the loss. With several ``steps`` it is a search for the worst case that
    is not told to keep the best point, and may end below where it was.

    Args:
        loss: The mean loss of the examples it is given, as for :func:`lowland.sam_gradient`, and so are the
            arguments that are not named here.
        params: The parameters; unchanged, and so are their ``.grad``, buffers and random generators.
        batch: The examples.
        rho: Radius of the climb, positive.
        m: Examples in a group; ``None`` for one group of all.
        ascent: How to climb; :class:`~lowland.sam.L2` by default.
        steps: Number of ascent steps.
        step_size: Size of one in units of ``rho``.
        reduction: ``"sum"`` for a loss that adds up its examples instead: it is divided by their number.
        engine: How the groups are run.
        captures: Steps that were recorded before, if steps are to be.
        module: The module that ``loss`` runs.

    Returns:
        The mean rise, with its standard error over groups.

    Raises:
        InputError: If ``rho`` is not positive.

    Example:
        >>> import torch
        >>> from lowland.sharpness import one_step_sharpness
        >>> w = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w)  # from 5 ** 2 to 6 ** 2 one unit away
        >>> batch = (torch.ones(4, dtype=torch.float64),)
        >>> round(one_step_sharpness(loss, w, batch, rho=1.0).value, 6)
        11.0
    """
    if not 0.0 < rho < float("inf"):
        raise InputError(f"rho must be positive and finite, got {rho}.")
    climb: dict[str, Any] = {"ascent": ascent, "steps": steps, "step_size": step_size, "captures": captures}
    found = _climbed(
        averaged(loss, reduction), params, batch, rho=rho, m=m, engine=engine, module=module, **climb
    )
    assert found.diagnostics is not None
    rise = found.diagnostics.perturbed_loss - found.diagnostics.loss
    kind = "l2" if ascent is None else repr(ascent)
    settings = {"rho": rho, "m": m, "ascent": kind, "steps": steps, "step_size": step_size}
    return _over_groups("one-step sharpness", found, rise, params, settings)


def _climbed(loss: Loss, params: Params, batch: Batch, **options: Any) -> SAMGradient:
    """A gradient that is only looked at: generators go back to where they were."""
    tensors = listed_params(params)
    with generators_kept(p for p in tensors if isinstance(p, Tensor)):
        found = sam_gradient(loss, params, batch, bn_stats="frozen", diagnostics=True, **options)
        require_some(found.gradients)
        return found


def _over_groups(
    measure: str, found: SAMGradient, values: Tensor, params: Params, settings: dict[str, Any]
) -> Measurement:
    assert found.diagnostics is not None
    sizes = found.diagnostics.group_size
    value, stderr = mean_over_groups(values, sizes)
    tensors = listed_params(params)
    examples = int(torch.round(sizes.sum()).item())
    return Measurement(measure, value, stderr, examples, dtype_name(tensors), settings, values.detach())
