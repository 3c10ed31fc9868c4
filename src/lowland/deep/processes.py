"""Which process of how many this is, and what they say to one another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from lowland.errors import InputError
from lowland.sam.ranks import added_up

Found = TypeVar("Found")

_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)
"""In what PyTorch says when another process does not answer any more."""


class ProcessLost(RuntimeError):
    """Another process of the run has ended before the run did."""


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.

    Example:
        >>> from lowland.deep import Ranks
        >>> Ranks(0, 1).is_first, Ranks(0, 1).several
        (True, False)
        >>> [Ranks(rank, 3).part(7) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def part(self, count: int) -> slice:
        """Which of ``count`` things in a row are this process's; numbers differ by at most one."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def first_alone(self, work: Callable[[], Found]) -> Found:
        """What ``work`` returns in the first process; if it fails there, it has failed in all.

        Args:
            work: Runs in the first process only; what it returns must be plain values.
        """
        if not self.several:
            return work()
        told: list[Any] = [_outcome(work) if self.is_first else None]
        dist.broadcast_object_list(told, src=0)
        value, error = told[0]
        if error is not None:
            raise error
        found: Found = value
        return found

    def together(self, work: Callable[[], Found]) -> Found:
        """What ``work`` returns here; if it fails in one process, it has failed in all.

        Args:
            work: Runs in every process, and calls none of the others.
        """
        if not self.several:
            return work()
        value, error = _outcome(work)
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, error)
        for error in filter(None, told):
            raise error
        found: Found = value
        return found

    def one_by_one(self, work: Callable[[], Found]) -> Found:
        """What ``work`` returns, first in the first process, then in the others: they find its cache.

        Args:
            work: As for :meth:`together`.
        """
        if not self.several:
            return work()
        found: list[Found] = []
        self.together(lambda: found.append(work()) if self.is_first else None)
        self.together(lambda: None if self.is_first else found.append(work()))
        return found[0]

    def most(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """Which of the flags are up in some process.

        Args:
            flags: Those of this process.
            device: Where tensors of the processes are.
        """
        if not self.several:
            return list(flags)
        (found,) = added_up([torch.tensor(list(flags), dtype=torch.float32, device=device)])
        return [bool(flag) for flag in found.tolist()]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of tensors over the processes.

        Args:
            tensors: Those of this process, of the same shapes everywhere.
        """
        return added_up(tensors) if self.several else list(tensors)

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The processes' tensors of one shape, in their order.

        Args:
            tensor: That of this process.
        """
        if not self.several:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous())
        return found


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What some work returns, or the error of the user's or of a file that it ends with."""
    try:
        return work(), None
    except (InputError, OSError, MemoryError) as error:
        return None, error.with_traceback(None)


def ranks() -> Ranks:
    """Which process this is of the default group of ``torch.distributed``; the only one if there is none.

    Example:
        >>> from lowland.deep import ranks
        >>> ranks()
        Ranks(rank=0, size=1)
    """
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[Callable[[], bool]]:
    """A block in which the processes that ``torchrun`` started are one group; without it, a plain block.

    Yields:
        A function that is true in the process that calls it first: it says what all have to say.

    Raises:
        InputError: If the environment says that there are several, and not where they meet.

    Example:
        >>> from lowland.deep import joined, ranks
        >>> with joined():
        ...     ranks().size
        1
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield lambda: True
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"several processes (WORLD_SIZE={os.environ['WORLD_SIZE']}) must be started by torchrun, "
            f"which sets {missing[0]}."
        )
    store, rank, size = next(iter(rendezvous("env://")))
    with in_group(store, rank, size):
        yield lambda: _is_first_to_speak(store)


@contextmanager
def in_group(store: Any, rank: int, size: int) -> Iterator[None]:
    """A block in which this process is one of the default group of ``torch.distributed``.

    Args:
        store: Where the processes meet.
        rank: Number of this process.
        size: Number of processes.
    """
    with_cuda = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if with_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _is_first_to_speak(store: Any) -> bool:
    try:
        return bool(store.add("lowland/spoken", 1) == 1)
    except RuntimeError:  # the store was in the process that is gone
        return True


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is that another process does not answer any more."""
    return ranks().several and (isinstance(error, dist.DistError) or bool(_LOST.search(str(error))))


def own_accelerator(device: torch.device) -> torch.device:
    """The accelerator of this process, of those of its machine.

    Raises:
        InputError: If several processes were to share the one that ``device`` names, or there are too few.
    """
    if not ranks().several or device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(
            f"device must be cuda with several processes, of which each has its own, got {device}."
        )
    device, there = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), torch.cuda.device_count()
    if device.index >= there:
        raise InputError(
            f"processes of a machine must be at most its accelerators, {there}, got more; "
            "--device cpu needs none."
        )
    torch.cuda.set_device(device)
    return device
