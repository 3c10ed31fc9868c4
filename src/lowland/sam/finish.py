"""What a call of SAM does once its gradient is there, and how it is undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowland.sam.deposit import Deposit
from lowland.sam.part import Call, Parts
from lowland.sam.ranks import require_reached
from lowland.sam.reductions import Reductions
from lowland.sam.total import SAMGradient
from lowland.sam.workspace import Workspace

if TYPE_CHECKING:
    from lowland.sam.shell import SAM


class Finish:
    """Parts take note, a step is counted, ``.grad`` is added to; a :class:`~lowland.sam.total.Then`.

    Args:
        sam: The SAM.
        call: Its call.
        parts: Its parts.
        workspace: Its memory.
    """

    def __init__(self, sam: SAM, call: Call, parts: Parts, workspace: Workspace) -> None:
        self.call, self.parts, self.workspace = call, parts, workspace
        self.reductions = Reductions(sam.process_group, call.params)
        self._sam = sam
        self.deposits = call.way == "backward"
        self._deposit = Deposit(call.params) if self.deposits else None
        self._counted = sam.steps_done, sam.last_diagnostics
        self._put_back = parts.kept()

    def check(self, num_examples: int) -> None:
        """Refuses a batch that m does not fit, before the first pass over it."""
        sam = self._sam
        sam.most_examples = max(sam.most_examples, num_examples)
        if sam.m is not None and sam.process_group is None:
            require_reached(sam.m, sam.most_examples)

    def __call__(self, result: SAMGradient) -> None:
        """Does it."""
        self.call.gradients, self.call.climb_gradients = result.gradients, result.climb_gradients
        self.parts.end(self.call)
        self._sam.steps_done, self._sam.last_diagnostics = self.call.step + 1, result.diagnostics
        if self._deposit is not None:
            self._deposit.add(result.gradients, self.reductions)

    def done(self) -> bool:
        """Whether ``.grad`` has the gradients."""
        return self._deposit is not None and self._deposit.done()

    def undo(self) -> None:
        """Parts and counters as they were, unless all was done."""
        if not self.done():
            self._sam.steps_done, self._sam.last_diagnostics = self._counted
            self._put_back()
