"""Climbs that several processes make together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.sam.average import Gradients, dense

BUCKET = 2**26
"""Bytes that are sent at once, more only of a single tensor."""


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
    weight, *sums = added_up([own[0].new_ones(1), *own], process_group, times=mass)
    for i, g in zip(indices, sums, strict=True):
        found[i] = g.div_(weight.to(g))
    return found


@torch.no_grad()
def added_up(
    tensors: Sequence[Tensor], process_group: dist.ProcessGroup | None = None, *, times: float = 1.0
) -> list[Tensor]:
    """The sums over the processes of ``tensors``, in as few collectives as types and size allow.

    Args:
        tensors: Dense tensors, of the same shapes and types in every process.
        process_group: The processes; all if ``None``.
        times: What those of this process are multiplied with.
    """
    found: dict[int, Tensor] = {}
    for bucket in _buckets(tensors):
        flat = torch.cat([tensors[i].reshape(-1) for i in bucket])
        if times != 1.0:
            flat.mul_(times)
        dist.all_reduce(flat, group=process_group)
        for i, part in zip(bucket, flat.split([tensors[i].numel() for i in bucket]), strict=True):
            found[i] = part.view(tensors[i].shape)
    return [found[i] for i in range(len(tensors))]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of tensors that are sent together: of one type, on one device."""
    alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, t in enumerate(tensors):
        alike.setdefault((t.dtype, t.device), []).append(i)
    for places in alike.values():
        bucket: list[int] = []
        size = 0
        for i in places:
            more = tensors[i].numel() * tensors[i].element_size()
            if bucket and size + more > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(i)
            size += more
        yield bucket
