"""What all passes of a group see alike, and what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch

from lowland.sam.objective import Objective
from lowland.sam.randomness import RandomState


class Draws:
    """Random draws: in the block every pass begins with the same.

    Afterwards the generators stand where the first pass over the group's own examples left them.

    Args:
        devices: The devices in use.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices
        self._after: RandomState | None = None
        self._untouched = True
        self.draws: RandomState | None = None

    def __enter__(self) -> Draws:
        self.draws = RandomState.capture(self._devices)
        return self

    def again(self) -> None:
        """Begins a pass."""
        if not self._untouched and self.draws is not None:
            self.draws.restore()
        self._untouched = False

    def stays(self) -> None:
        """Says that what the generators were left at is to stay."""
        if self.draws is not None:
            self._after = RandomState.capture(self._devices)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._after is not None:
            self._after.restore()


class World(Draws):
    """Random draws and buffers: in the block every pass begins with the same.

    Args:
        objective: What is passed over.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective.devices)
        self._same = objective.buffers.same_start()

    def __enter__(self) -> World:
        super().__enter__()
        self._same.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._same.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)
