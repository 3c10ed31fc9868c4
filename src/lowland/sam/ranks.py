"""Climbs that several processes make together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.sam.average import Gradients, dense

BUCKET = 2**26
"""Bytes that are sent at once, more only of a single tensor."""


def own_share(m: int | None, process_group: dist.ProcessGroup | None) -> int | None:
    """Examples of a group that are this process's own, where ``m`` counts those of all that climb together.

    Raises:
        ValueError: If they cannot have the same number each.
    """
    if m is None or process_group is None:
        return m
    size = dist.get_world_size(process_group)
    if m % size:
        raise ValueError(
            f"m must be a multiple of the {size} processes of process_group, which share each group out, "
            f"got {m}."
        )
    return m // size


def require_reached(m: int, most: int) -> None:
    """Refuses an m that no batch of this process has reached, where other processes have more examples.

    Raises:
        ValueError: If it is so.
    """
    if m > most and several_processes():
        raise ValueError(
            f"m must be at most the {most} examples of a batch of this process, or process_group must be "
            f"given, with which processes climb together and m counts the examples of all, got m={m}."
        )


def several_processes() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def examples_scale(num_examples: int, process_group: dist.ProcessGroup | None = None) -> float:
    r"""What to give as ``scale`` where processes have batches of different sizes.

    ``DistributedDataParallel`` takes the mean over processes, whatever their numbers of examples. With this
    factor, :math:`W B_r / \sum_s B_s` for :math:`B_r` examples on one of :math:`W` processes, that is the
    mean over all examples. Every process must call it: not inside ``Join``, which weighs by itself.

    Args:
        num_examples: Examples of this process's batch.
        process_group: The processes that train together; all if ``None``.

    Returns:
        The factor; 1 in a process by itself.

    Raises:
        ValueError: If there are no examples in all processes together.

    Example:
        >>> from lowland.sam import examples_scale
        >>> examples_scale(5)  # sam.backward(loss, x, y, scale=examples_scale(len(x)))
        1.0
    """
    if not several_processes():
        return 1.0
    total = torch.tensor([float(num_examples)], dtype=torch.float64, device=_device_of(process_group))
    dist.all_reduce(total, group=process_group)
    if total == 0.0:
        raise ValueError("num_examples must be positive in some process, got 0 in all.")
    return num_examples * dist.get_world_size(process_group) / total.item()


def _device_of(process_group: dist.ProcessGroup | None) -> torch.device:
    """Where processes send each other tensors from."""
    cpu = torch.device("cpu")
    if "gloo" in str(dist.get_backend(process_group)):
        return cpu
    return torch.accelerator.current_accelerator() or cpu


def require_alike(
    process_group: dist.ProcessGroup, weight: object, sizes: Sequence[int | None], device: torch.device
) -> bool:
    """Refuses weights of one's own, and batches cut into another number of groups than in other processes.

    Args:
        process_group: The processes.
        weight: What was given for the weight of groups.
        sizes: Numbers of examples of this process's groups.
        device: Where they send from.

    Returns:
        Whether the groups of all processes are of the same sizes.

    Raises:
        ValueError: In every process, if the numbers differ.
    """
    if weight is not None:
        raise ValueError("weight must be None with process_group, got a function.")
    own = torch.tensor([len(sizes), sum(i * (size or 1) for i, size in enumerate(sizes, 1))], device=device)
    bounds = torch.cat([own, -own])
    dist.all_reduce(bounds, dist.ReduceOp.MAX, group=process_group)
    most, heaviest, fewest, lightest = bounds.tolist()
    fewest, lightest = -fewest, -lightest
    if most != fewest:
        raise ValueError(
            "every process of process_group must have the same number of groups, "
            f"got between {fewest} and {most}."
        )
    return bool(heaviest == lightest)


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
        for i, part in zip(bucket, torch.split(flat, [tensors[i].numel() for i in bucket]), strict=True):
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
