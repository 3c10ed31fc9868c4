"""What ``DistributedDataParallel`` sees of a call: one forward pass and one backward pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowland.sam.private import (
    begin_passing_by,
    end_passing_by,
    forward_of_nothing,
    is_joining,
    is_passed_by,
    outside_of_transforms,
    prepare_backward,
    unseen_by_modes,
)
from lowland.sam.ranks import several_processes

COLLECTIVE = DistributedDataParallel, nn.SyncBatchNorm
"""Modules that other processes take part in, of which :meth:`Reductions.begin` is told before each pass."""


class Reductions:
    """The collectives of the ``DistributedDataParallel`` modules that run in a call.

    Such a module broadcasts its buffers and speaks to processes that have joined in a forward pass, and adds
    gradients up in a backward pass. All processes must do the same in the same order, while the passes of
    their groups differ in number. So each module makes its forward pass once, around nothing, before its
    first pass of the call; in the passes only what is inside it runs; and its backward pass is that in which
    the result reaches ``.grad``. Its modes, ``no_sync`` and hooks, joined and unused parameters are then what
    they are in plain training.

    Args:
        process_group: The processes that climb together, whose passes are alike; ``None`` if none do.
        trained: The parameters of the call.
    """

    def __init__(
        self, process_group: dist.ProcessGroup | None = None, trained: Iterable[Tensor] = ()
    ) -> None:
        self._process_group = process_group
        self._trained = {id(p) for p in trained}
        self._begun: dict[int, DistributedDataParallel] = {}
        self._ends: list[Tensor] = []

    @property
    def begun(self) -> list[DistributedDataParallel]:
        """The modules that ran so far."""
        return [*self._begun.values()]

    def begin(self, module: nn.Module) -> bool:
        """Makes the forward pass of a module that is about to run for the first time.

        Returns:
            Whether it was made: not if another call has done so, around this one.

        Raises:
            ValueError: If the module keeps its parameters or buffers in a way that this knows nothing of, or
                waits for the same pass of processes that may make none.
        """
        self._require_together(module)
        if not isinstance(module, DistributedDataParallel) or is_passed_by(module):
            return False
        _require_usual(module)
        is_trained = self._trains(module)
        with torch.set_grad_enabled(is_trained), outside_of_transforms(), unseen_by_modes():
            through = torch.zeros((), device=next(module.parameters()).device, requires_grad=True)
            end = forward_of_nothing(module, through * 1.0)
        if is_trained:
            self._ends.append(end)
        self._begun[id(module)] = module
        begin_passing_by(module)
        return True

    def _trains(self, module: DistributedDataParallel) -> bool:
        """Whether the call trains what a module reduces: all of it, or none, as of a teacher."""
        reduced = [p for p in module.parameters() if p.requires_grad]
        trained = sum(id(p) in self._trained for p in reduced)
        if 0 < trained < len(reduced) and not module.find_unused_parameters:
            raise ValueError(
                f"params must hold all {len(reduced)} parameters that DistributedDataParallel reduces, "
                f"unless it has find_unused_parameters=True, got {trained}: perturb= names those to perturb."
            )
        return trained > 0

    def end(self) -> None:
        """Modules run as they are again; once more is as good."""
        for module in self._begun.values():
            end_passing_by(module)

    def ends(self) -> list[Tensor]:
        """What the backward pass is to begin at, beside the result."""
        return self._ends

    def prepare(self, value: Tensor) -> None:
        """Takes the graph of ``value``, which has the result, for that of the backward pass."""
        for module in self._begun.values():
            looks = module.find_unused_parameters and not module.static_graph
            if looks and module.require_backward_grad_sync:
                prepare_backward(module, value)

    def _require_together(self, module: nn.Module) -> None:
        alone = self._process_group is None and several_processes()
        if isinstance(module, nn.SyncBatchNorm) and module.training and alone:
            raise ValueError(
                "SyncBatchNorm, whose passes wait for those of other processes, must be used with "
                "process_group, so that they climb together, got None."
            )


class Unreduced(Reductions):
    """The same modules where each process is by itself, in a measure say: they make no collective at all."""

    def begin(self, module: nn.Module) -> bool:
        """Has only what is inside a module run, from now on.

        Returns:
            ``False``: no forward pass was made.

        Raises:
            ValueError: If the module waits for the same pass of processes that may make none.
        """
        self._require_together(module)
        if isinstance(module, DistributedDataParallel) and not is_passed_by(module):
            self._begun[id(module)] = module
            begin_passing_by(module)
        return False


def refuse_joined(modules: Iterable[nn.Module | None]) -> None:
    """Refuses a climb of several processes some of which may have joined: these take part in DDP's own only.

    Raises:
        ValueError: If one of ``modules`` is in a block of ``Join``.
    """
    if any(isinstance(module, DistributedDataParallel) and is_joining(module) for module in modules):
        raise ValueError("process_group must be None inside Join, got one: a climb together needs them all.")


def _require_usual(module: DistributedDataParallel) -> None:
    if module.mixed_precision is not None:
        raise ValueError(
            "DistributedDataParallel must have mixed_precision=None here, got one: use torch.autocast."
        )
    if getattr(module, "buffer_hook", None) is not None:
        raise ValueError("DistributedDataParallel must have no hook of its own for buffers here, got one.")
