"""What a loss reads and writes beside its parameters: buffers, its inputs, and what is kept elsewhere.

All groups run at once, so that what one group would leave behind for the next is not there, and what is
written is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from lowland.sam.batched.running import track
from lowland.sam.place import place_of
from lowland.sam.private import is_in_vmap
from lowland.sam.unbatchable import Unbatchable


class Outside:
    """Tensors from outside a pass.

    Args:
        params: The parameters, whose memory may not be reached by other ways.
        groups: Number of groups.
        buffers: Identities of the buffers of the modules that ran so far.
        moves_stats: Whether the pass moves running statistics.

    Attributes:
        runs_twice: Whether what runs now may be run again in the backward pass.
    """

    def __init__(
        self, params: Iterable[Tensor], groups: int, buffers: Callable[[], set[int]], *, moves_stats: bool
    ) -> None:
        self.moves_stats = moves_stats
        self.runs_twice = False
        self._groups = groups
        self._buffers = buffers
        self._memory = {place_of(p) for p in params if p.numel() > 0}
        self._inputs: dict[int, Tensor] = {}
        self._read: set[int] = set()
        self._written: set[int] = set()
        self._tracked: dict[int, tuple[Tensor, list[tuple[Tensor, float]]]] = {}

    def begin(self, inputs: Iterable[Tensor]) -> None:
        """Takes note of the loss's arguments, as it sees them."""
        self._inputs = {id(t): t for t in inputs}

    def passed(
        self, named: str, *, writes: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """The arguments of an operation without a rule, if it may run; of a counter, all groups' increments.

        Raises:
            Unbatchable: If it writes to a buffer or an input, reads what was written, or reaches a parameter
                by another name.
        """
        if kwargs.get("generator") is not None:
            raise Unbatchable(f"{named} with a generator of its own")
        if writes:
            target = kwargs.get("out", args[0] if args else kwargs.get("input"))
            if id(target) in self._inputs:
                raise Unbatchable(f"{named}, which changes the batch")
            if isinstance(target, Tensor) and id(target) in self._buffers():
                return self._counted(named, target, args)
        for tensor in tensors_in((args, kwargs)):
            self.read(tensor)
            self._require_own_memory(tensor)
        return args

    def read(self, tensor: Tensor | None) -> None:
        """Takes note that ``tensor`` was read."""
        if id(tensor) in self._written or id(tensor) in self._tracked:
            raise Unbatchable("a buffer that is read after it was changed (batch norm with momentum=None?)")
        self._read.add(id(tensor))

    def statistics(self, running: Tensor | None, found: Tensor, momentum: float) -> None:
        """Notes the statistics that a layer found for each group, to be taken into ``running`` later."""
        if running is None or not self.moves_stats:
            return
        if self.runs_twice:
            raise Unbatchable(
                "running statistics inside hooks on saved tensors: a checkpoint moves them twice"
            )
        if id(running) in self._read:
            raise Unbatchable("running statistics that are read before they move")
        self._tracked.setdefault(id(running), (running, []))[1].append((found, momentum))

    @property
    def changed(self) -> set[int]:
        """Buffers that are known to change."""
        return self._written | set(self._tracked)

    @property
    def moves_in_order(self) -> bool:
        """Whether running statistics move, which depend on the order of the groups."""
        return len(self._tracked) > 0

    def move_statistics(self) -> None:
        """Moves the running statistics as if one group had come after the other."""
        for running, found in self._tracked.values():
            track(running, found)

    def _counted(self, named: str, target: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
        counts = named == "add_" and len(args) == 2 and isinstance(args[1], int)
        if not counts or target.is_floating_point() or id(target) in self._read:
            raise Unbatchable(f"{named}, which changes a buffer")
        self._written.add(id(target))
        return target, args[1] * self._groups

    def _require_own_memory(self, tensor: Tensor) -> None:
        if not is_in_vmap(tensor) and place_of(tensor) in self._memory and tensor.numel() > 0:
            raise Unbatchable("a parameter by another name, such as its .detach() from outside the loss")


def tensors_in(element: Any) -> Iterator[Tensor]:
    """All tensors of nested containers."""
    if isinstance(element, Tensor):
        yield element
    elif isinstance(element, (list, tuple)):
        for value in element:
            yield from tensors_in(value)
    elif isinstance(element, dict):
        for value in element.values():
            yield from tensors_in(value)
