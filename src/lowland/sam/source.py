"""Which examples the climb sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch

from lowland.sam.batch import MicroBatches

Batch = tuple[Any, ...]


@runtime_checkable
class AscentSource(Protocol):
    """Examples for the climb of each call, beside those of the call itself.

    A source that keeps batches may have a method ``done(batch)``, given a copy when the call went well.
    """

    def ascent_batch(self, batch: Batch) -> Batch | MicroBatches | None:
        """The examples for the climb of a call with ``batch``; ``None`` for its own."""
        ...


class PreviousBatch:
    """The batch of the call before (MaxSum SAM; Andriushchenko & Flammarion, 2022).

    The first call climbs on its own batch.
    """

    def __init__(self) -> None:
        self._previous: Batch | None = None

    def ascent_batch(self, batch: Batch) -> Batch | None:  # noqa: ARG002 - the protocol's
        """The previous batch."""
        return self._previous

    def done(self, batch: Batch) -> None:
        """Keeps ``batch`` for the next call."""
        self._previous = batch

    def state_dict(self) -> dict[str, Any]:
        """The batch that is kept."""
        return {"previous": self._previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``."""
        self._previous = state["previous"]


class FromLoader:
    """Batches of a loader: all of them (n-SAM), or the next few, round and round.

    Every call climbs once, along the gradient averaged over the examples of these batches.

    Args:
        loader: Batches, each the tuple or list of the loss's arguments, or its only argument.
        num_batches: How many of them a climb sees; ``None`` for all.

    Raises:
        ValueError: If ``num_batches`` is not positive, or the loader is empty.
    """

    def __init__(self, loader: Iterable[Any], num_batches: int | None = None) -> None:
        if num_batches is not None and num_batches < 1:
            raise ValueError(f"num_batches must be positive, got {num_batches}.")
        self._loader = loader
        self._num_batches = num_batches
        self._drawn = 0
        self._round: Iterator[Any] | None = None
        self._held: MicroBatches | None = None

    def ascent_batch(self, batch: Batch) -> MicroBatches:  # noqa: ARG002 - the protocol's
        """The batches of this call's climb."""
        if self._num_batches is None:
            return MicroBatches(self._loader)
        if self._held is None:
            self._held = MicroBatches([self._next() for _ in range(self._num_batches)])
        return self._held

    def done(self, batch: Batch) -> None:  # noqa: ARG002 - the protocol's
        """The next climb sees other batches; one that failed is made again with the same."""
        self._held = None

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the current round were drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``: the same batches follow if the loader is in the same order."""
        self._round, self._held, self._drawn = None, None, state["drawn"]

    def _begun(self) -> Iterator[Any]:
        """A round, or the rest of one that was begun, which drew its random numbers then."""
        if self._drawn == 0:
            return iter(self._loader)
        with torch.random.fork_rng(devices=[]):
            begun = iter(self._loader)
            next(islice(begun, self._drawn - 1, None), None)
            return begun

    def _next(self) -> Any:
        for _ in range(2):
            if self._round is None:
                self._round = self._begun()
            for batch in self._round:
                self._drawn += 1
                return batch
            self._round, self._drawn = None, 0
        raise ValueError("loader must hold at least one batch, got none.")
