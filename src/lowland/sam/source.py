"""Which examples the climb sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from lowland.sam.batch import MicroBatches, detach

Batch = tuple[Any, ...]


@runtime_checkable
class AscentSource(Protocol):
    """Examples for the climb of each call, beside those of the call itself."""

    def ascent_batch(self, batch: Batch) -> Batch | MicroBatches | None:
        """The examples for the climb of a call with ``batch``; ``None`` for its own."""
        ...


class PreviousBatch:
    """The batch of the call before (MaxSum SAM; Andriushchenko & Flammarion, 2022).

    The first call climbs on its own batch.
    """

    def __init__(self) -> None:
        self._previous: Batch | None = None

    def ascent_batch(self, batch: Batch) -> Batch | None:
        """The previous batch; ``batch`` is kept for the next call."""
        previous, self._previous = self._previous, tuple(detach(element) for element in batch)
        return previous

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

    def ascent_batch(self, batch: Batch) -> MicroBatches:  # noqa: ARG002 - the protocol's
        """The batches of this call's climb."""
        if self._num_batches is None:
            return MicroBatches(self._loader)
        return MicroBatches([self._next() for _ in range(self._num_batches)])

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the current round were drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``: the same batches follow if the loader is in the same order."""
        self._round = iter(self._loader)
        self._drawn = len(list(islice(self._round, state["drawn"])))

    def _next(self) -> Any:
        for _ in range(2):
            if self._round is None:
                self._round, self._drawn = iter(self._loader), 0
            for batch in self._round:
                self._drawn += 1
                return batch
            self._round = None
        raise ValueError("loader must hold at least one batch, got none.")
