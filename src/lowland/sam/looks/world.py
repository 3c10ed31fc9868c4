"""What all passes of a group see alike, and what they leave."""

from __future__ import annotations

from types import TracebackType

from lowland.sam.objective import Objective
from lowland.sam.randomness import RandomState


class World:
    """Random draws and buffers: in the block every pass begins with the same.

    Afterwards the generators stand where the first pass over the group's own examples left them.

    Args:
        objective: What is passed over.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._same = objective.buffers.same_start()
        self._after: RandomState | None = None
        self._untouched = True
        self.draws: RandomState | None = None

    def __enter__(self) -> World:
        self.draws = RandomState.capture(self._objective.devices)
        self._same.__enter__()
        return self

    def again(self) -> None:
        """Begins a pass."""
        if not self._untouched and self.draws is not None:
            self.draws.restore()
        self._untouched = False

    def stays(self) -> None:
        """Says that what the generators were left at is to stay."""
        if self.draws is not None:
            self._after = RandomState.capture(self._objective.devices)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._same.__exit__(kind, error, trace)
        if kind is None and self._after is not None:
            self._after.restore()
