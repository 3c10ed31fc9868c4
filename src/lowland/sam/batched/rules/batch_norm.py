"""Batch norm: statistics of each group by itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batched.precision import reshaped, result_type
from lowland.sam.batched.rules.norm import by_statistics, plain_batch_norm
from lowland.sam.batched.tape import Tape, rule


@rule(torch.batch_norm)
def batch_norm(
    tape: Tape,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,  # noqa: ARG001 - the function's
) -> Any:
    """In training over the group, in evaluation by running statistics."""
    if not training:
        return by_statistics(tape, input, weight, bias, running_mean, running_var, eps)
    result_type(plain_batch_norm, (input, 2), (weight, 1), (bias, 1))
    function = partial(_of_groups, tape, running_mean, running_var, momentum, eps)
    return tape.at_groups(function, input, weight, bias)


def _of_groups(
    tape: Tape,
    mean: Tensor | None,
    var: Tensor | None,
    momentum: float,
    eps: float,
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
) -> Tensor:
    """Batch norm of ``(groups, m, channels, ...)``, with the groups' channels side by side."""
    groups, m, channels = x.shape[:3]
    aside = x.transpose(0, 1).reshape(m, groups * channels, -1)
    found_mean = None if mean is None else torch.zeros_like(mean).repeat(groups)
    found_var = None if var is None else torch.zeros_like(var).repeat(groups)
    w_all = None if w is None else w.reshape(-1)
    b_all = None if b is None else b.reshape(-1)
    # With momentum 1 the statistics of all groups are written as they are.
    y = torch.batch_norm(
        aside, w_all, b_all, found_mean, found_var, True, 1.0, eps, torch.backends.cudnn.enabled
    )
    if found_mean is not None and found_var is not None:
        tape.outside.statistics(mean, found_mean.view(groups, channels), momentum)
        tape.outside.statistics(var, found_var.view(groups, channels), momentum)
    return reshaped(y.view(m, groups, *x.shape[2:]).transpose(0, 1), x.shape)
