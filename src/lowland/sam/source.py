"""Which examples the climb sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch

from lowland.sam.batch import MicroBatches
from lowland.sam.containers import copied
from lowland.sam.part import Call, Part

Batch = tuple[Any, ...]


@runtime_checkable
class AscentSource(Protocol):
    """Examples for the climb of each call, beside those of the call itself.

    One that keeps batches has hooks: :class:`~lowland.sam.Part`.
    """

    def ascent_batch(self, batch: Batch) -> Batch | MicroBatches | None:
        """The examples for the climb of a call with ``batch``; ``None`` for its own."""
        ...


class PreviousBatch(Part):
    """The batch of the call before (MaxSum SAM; Andriushchenko & Flammarion, 2022).

    The first call climbs on its own batch.
    """

    def __init__(self) -> None:
        self._previous: Batch | None = None
        self._next: Batch | None = None

    def begin(self, call: Call) -> None:
        """Takes a copy of the batch, which a loss may change."""
        self._next = copied(call.batch, lambda t: t.detach().clone())

    def ascent_batch(self, batch: Batch) -> Batch | None:  # noqa: ARG002 - the protocol's
        """The previous batch."""
        return self._previous

    def end(self, call: Call) -> None:  # noqa: ARG002 - the hook's
        """Keeps the copy for the next call."""
        self._previous, self._next = self._next, None

    def state_dict(self) -> dict[str, Any]:
        """The batch that is kept."""
        return {"previous": self._previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``."""
        self._previous = state["previous"]


class FromLoader(Part):
    """Batches of a loader: all of them (n-SAM), or the next few, round and round.

    Every call climbs once, along the gradient averaged over the examples of these batches. A call that is
    made again after it failed climbs on the same.

    Args:
        loader: Batches, each the tuple or list of the loss's arguments, or its only argument.
        num_batches: How many of them a climb sees; ``None`` for all.

    Raises:
        ValueError: If ``num_batches`` is not positive, or the loader is empty.
    """

    def __init__(self, loader: Iterable[Any], num_batches: int | None = None) -> None:
        if num_batches is not None and num_batches < 1:
            raise ValueError(f"num_batches must be positive, got {num_batches}.")
        self.loader = loader
        self.num_batches = num_batches
        self._drawn = 0
        self._round: _Round | None = None

    def ascent_batch(self, batch: Batch) -> MicroBatches:  # noqa: ARG002 - the protocol's
        """The batches of this call's climb."""
        if self.num_batches is None:
            return MicroBatches(self.loader)
        return MicroBatches([self._next() for _ in range(self.num_batches)])

    def end(self, call: Call) -> None:  # noqa: ARG002 - the hook's
        """The batches of a call that went well are not asked for again."""
        if self._round is not None:
            self._round.forget()

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the current round were drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``: the same batches follow if the loader is in the same order."""
        self._round, self._drawn = None, state["drawn"]

    def _next(self) -> Any:
        for _ in range(2):
            if self._round is None:
                self._round = _Round(self.loader, self._drawn)
            for batch in self._round.after(self._drawn):
                self._drawn += 1
                return batch
            self._round, self._drawn = None, 0
        raise ValueError("loader must hold at least one batch, got none.")


class _Round:
    """One pass over a loader, or the rest of one that was begun, which drew its random numbers then.

    It holds what was drawn until it is told to forget it, since no loader goes back. Without a ``__dict__``
    it is not put back, either, when a call fails: it knows what it drew.

    Args:
        loader: The loader.
        drawn: Number of batches that were drawn before.
    """

    __slots__ = ("_held", "_loaded")

    def __init__(self, loader: Iterable[Any], drawn: int) -> None:
        self._held: dict[int, Any] = {}
        self._loaded = _rest(loader, drawn)

    def after(self, drawn: int) -> Iterator[Any]:
        """The batches after the first ``drawn``."""
        if drawn not in self._held:
            for batch in self._loaded:
                self._held[drawn] = batch
                break
        if drawn in self._held:
            yield self._held[drawn]

    def forget(self) -> None:
        """Lets go of what was drawn."""
        self._held.clear()


def _rest(loader: Iterable[Any], drawn: int) -> Iterator[Any]:
    if drawn == 0:
        return iter(loader)
    with torch.random.fork_rng(devices=[]):
        begun = iter(loader)
        next(islice(begun, drawn - 1, None), None)
        return begun
