"""Climbs that several processes make together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.sam.average import Gradients, dense


def require_alike(
    process_group: dist.ProcessGroup, weight: object, num_groups: int, device: torch.device
) -> None:
    """Refuses weights of one's own, and batches cut into another number of groups than in other processes.

    Raises:
        ValueError: In every process, if the numbers differ.
    """
    if weight is not None:
        raise ValueError("weight must be None with process_group, got a function.")
    bounds = torch.tensor([num_groups, -num_groups], device=device)
    dist.all_reduce(bounds, dist.ReduceOp.MAX, group=process_group)
    most, fewest = int(bounds[0]), -int(bounds[1])
    if most != fewest:
        raise ValueError(
            "every process of process_group must have the same number of groups, "
            f"got between {fewest} and {most}."
        )


def mean_over_ranks(
    process_group: dist.ProcessGroup,
    gradients: Gradients,
    mass: float,
    params: Sequence[Tensor],
    indices: Sequence[int],
) -> Gradients:
    """The mean of the processes' ``gradients`` of the parameters ``indices``, weighted by their ``mass``."""
    found: Gradients = [None] * len(params)
    own = dense([gradients[i] for i in indices], [params[i] for i in indices])
    weight = torch.tensor([mass], dtype=torch.float64, device=own[0].device)
    dist.all_reduce(weight, group=process_group)
    for i, g in zip(indices, own, strict=True):
        found[i] = g * (mass / weight.to(g))
        dist.all_reduce(found[i], group=process_group)
    return found
