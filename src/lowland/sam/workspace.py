"""Memory that is reused from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Workspace:
    """Where the weights are copied to while they are perturbed.

    On a CPU, memory that was just allocated costs several times as much to write to as memory that is
    there: the system hands it out page by page. Devices with an allocator of their own get fresh copies.

    Attributes:
        open: The moves whose weights are not back yet.
    """

    def __init__(self) -> None:
        self.open: list[Any] = []
        self._buffers: list[Tensor] = []

    def undo(self) -> None:
        """Puts back all weights that are still moved, the last ones first."""
        for moved in reversed(self.open):
            moved.undo()

    def copies(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of ``tensors``, valid until the next call."""
        if any(t.device.type != "cpu" for t in tensors):
            return [t.clone() for t in tensors]
        if [_kind(b) for b in self._buffers] != [_kind(t) for t in tensors]:
            self._buffers = [torch.empty_like(t, requires_grad=False) for t in tensors]
        torch._foreach_copy_(self._buffers, list(tensors))
        return self._buffers


def _kind(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.shape, tensor.stride(), tensor.dtype
