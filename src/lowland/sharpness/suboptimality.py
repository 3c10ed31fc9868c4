"""How well SAM's one step maximizes the loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Unpack

import torch

from lowland.sam.grouped import Grouped
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.first_order import one_step_sharpness
from lowland.sharpness.measurement import Measurement, mean_over_groups
from lowland.sharpness.objective import Batch, Loss, Params, held
from lowland.sharpness.outcome import sizes_of
from lowland.sharpness.search import AutoPGD
from lowland.sharpness.worst_case import Options, worst_case


def suboptimality(
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    rho: float,
    m: int | None = None,
    reduction: Reduction = "mean",
    **options: Unpack[Options],
) -> Measurement:
    r"""The suboptimality factor: worst-case sharpness by many steps over that by SAM's single one.

    It tells how well SAM's ascent step maximizes the loss (Andriushchenko & Flammarion, 2022, section 3).
    The standard error is that of a ratio of means over groups, to first order.

    Args:
        loss: As for :func:`worst_case`, and so are all other arguments; of those that are not named here
            ``search`` is an :class:`AutoPGD` of 100 steps by default.
        params: The parameters.
        batch: The examples.
        rho: Radius.
        m: Examples in a group.
        reduction: Whether the loss is a mean or a sum.
        options: Those of :class:`WorstCase`, but ``reduction``.

    Returns:
        The factor, NaN if the single step does not change the loss; ``also`` has both values.

    Raises:
        InputError: As for :func:`worst_case`.

    Example:
        >>> import torch
        >>> from lowland.sharpness import suboptimality
        >>> w = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w)  # its gradient leads to the highest point
        >>> round(suboptimality(loss, w, (torch.ones(4, dtype=torch.float64),), rho=1.0).value, 4)
        1.0
    """
    batch = held(batch)
    options.setdefault("search", AutoPGD(steps=100))
    many = worst_case(loss, params, batch, rho=rho, m=m, reduction=reduction, **options)
    engine, module = options.get("engine", "auto"), options.get("module")
    one = one_step_sharpness(
        loss, params, batch, rho=rho, m=m, reduction=reduction, engine=engine, module=module
    )
    assert many.groups is not None
    assert one.groups is not None
    sizes = torch.tensor(sizes_of(Grouped(batch, m)), dtype=torch.float64)
    ratio = many.value / one.value if one.value != 0.0 else math.nan
    deviations = (many.groups.double().cpu() - ratio * one.groups.double().cpu()) / one.value
    stderr = mean_over_groups(deviations, sizes)[1]
    return replace(
        many,
        measure="suboptimality factor",
        value=ratio,
        stderr=stderr,
        extras={},
        groups=None,
        also={"many": many.value, "one": one.value},
        points=None,
    )
