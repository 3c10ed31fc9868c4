"""What there was before a call, all of which is put back if the call fails."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lowland.sam.buffers import Buffers, Snapshot
from lowland.sam.caches import forget_caches
from lowland.sam.perturb import blocks_open, close_blocks
from lowland.sam.private import ModeStacks, leave_saving_hooks, leave_transform, saving_hooks, transform_level
from lowland.sam.randomness import RandomState
from lowland.sam.workspace import Workspace


class Before:
    """The state of everything that a call touches, taken at its beginning.

    Blocks inside the call put back what they changed. An interrupt may come between the end of a block and
    what it would put back, and then this does.

    Args:
        params: The parameters of the call.
        buffers: What its modules hold, being watched.
        held: The snapshot of that.
        workspace: Where moved weights are noted.
        modes: Modes of torch, as they are.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        buffers: Buffers,
        held: Snapshot,
        workspace: Workspace,
        modes: _Modes,
    ) -> None:
        self._buffers, self._held, self._workspace = buffers, held, workspace
        self._generators = RandomState.capture(devices_of(params))
        self._hooks = [(p._backward_hooks, dict(p._backward_hooks)) for p in params if p._backward_hooks]
        self._blocks = blocks_open()
        self._modes = modes

    def restore(self) -> None:
        """Puts everything back; once more is as good."""
        self.restore_modes()
        self._buffers.give_up_after(self._held)
        self._held.restore()
        self._generators.restore()

    def restore_modes(self) -> None:
        """Puts back what must not stay in any case: moved weights, modes of torch, hooks."""
        self._modes.restore()
        self._workspace.undo()
        close_blocks(self._blocks)
        for hooks, saved in self._hooks:
            hooks.update(saved)
        forget_caches()


@contextmanager
def undone_on_error(
    params: Sequence[Tensor], buffers: Buffers, workspace: Workspace, unless: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Everything that passes touch is put back if the block raises.

    Where it raises after all was done, as ``unless`` tells, only what must not stay in any case.
    """
    modes = _Modes(params)
    try:
        with buffers.watched() as held:
            before = Before(params, buffers, held, workspace, modes)
            try:
                yield
            except BaseException:
                before.restore_modes()  # first: what is left of them would see all that comes
                if unless is None or not unless():
                    before.restore()
                raise
    except BaseException:
        modes.restore()
        raise


class _Modes:
    """Modes of torch that blocks switch on: gradients, autocast, and what sees its functions."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._grad = torch.is_grad_enabled()
        self._nesting = _autocast_nesting()
        self._autocast = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in sorted({"cpu", *(p.device.type for p in params)} - {"meta"})
        ]
        self._stacks = ModeStacks()
        self._saving = saving_hooks()
        self._level = transform_level()
        self._filters = warnings.filters

    def restore(self) -> None:
        self._stacks.restore()
        while saving_hooks() not in (None, self._saving):
            leave_saving_hooks()
        while transform_level() not in (None, self._level):
            leave_transform()
        warnings.filters = self._filters
        torch.set_grad_enabled(self._grad)
        for device, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        while _autocast_nesting() > self._nesting:
            torch.autocast_decrement_nesting()


def _autocast_nesting() -> int:
    """How many blocks of autocast are open: one more and one less, between which no interrupt can come."""
    both = torch.autocast_increment_nesting, torch.autocast_decrement_nesting
    return int([*map(operator.call, both)][1])


def devices_of(params: Sequence[Tensor]) -> list[torch.device]:
    """Devices of the parameters."""
    return sorted({p.device for p in params}, key=str)
