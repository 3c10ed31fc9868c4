"""How gradients reach ``.grad``, and what must not see them on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def deposit(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Adds ``gradients`` to ``.grad`` in one backward call, so that every hook fires, once."""
    pairs = [(p, g) for p, g in zip(params, gradients, strict=True) if g is not None]
    torch.autograd.backward([p for p, _ in pairs], [g for _, g in pairs])


@contextmanager
def tensor_hooks_held(params: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block no hook of ``Tensor.register_hook`` on a parameter fires.

    ``torch.autograd.grad`` runs them too, so that they would act on the passes' gradients and then once
    more on what is deposited.
    """
    held = [(p._backward_hooks, dict(p._backward_hooks)) for p in params if p._backward_hooks]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, saved in held:
            hooks.update(saved)


def refuse_unreducible(module: nn.Module | None, num_groups: int) -> None:
    """Refuses the two modes of ``DistributedDataParallel`` that count on one backward per forward.

    With ``static_graph`` its reducer schedules the reduction in the first backward that it sees, which
    is the climb's, and then silently reduces nothing. With ``find_unused_parameters`` it takes the last
    group's graph for that of all groups.

    Raises:
        ValueError: If ``module`` contains one in such a mode.
    """
    for part in () if module is None else module.modules():
        if not isinstance(part, DistributedDataParallel):
            continue
        if part.static_graph:
            raise ValueError("DistributedDataParallel must have static_graph=False here, got True.")
        if part.find_unused_parameters and num_groups > 1:
            raise ValueError(
                "DistributedDataParallel must have find_unused_parameters=False where a batch has several "
                f"groups, got True and {num_groups} groups."
            )
