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
        """The examples for the climb of a call with ``batch``; ``None`` for its own.

        Args:
            batch: The loss's arguments in the call.
        """
        ...


class PreviousBatch(Part):
    """The batch of the call before (MaxSum SAM; Andriushchenko & Flammarion, 2022).

    The first call climbs on its own batch.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, PreviousBatch
        >>> w = [torch.tensor([1.0], requires_grad=True) for _ in range(2)]
        >>> def loss(x, y):
        ...     return (x.mean() * w[0].square() + y.mean() * w[1].square()).sum() / 2
        >>> sam = SAM(w, rho=1.0, source=PreviousBatch())
        >>> value = sam.backward(loss, torch.tensor([3.0]), torch.tensor([4.0]))
        >>> for t in w:
        ...     t.grad = None
        >>> value = sam.backward(loss, torch.ones(4), torch.ones(4))  # climbs along (3, 4)
        >>> [round(t.grad.item(), 4) for t in w]
        [1.6, 1.8]
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

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, FromLoader
        >>> w = [torch.tensor([1.0], requires_grad=True) for _ in range(2)]
        >>> def loss(x, y):
        ...     return (x.mean() * w[0].square() + y.mean() * w[1].square()).sum() / 2
        >>> loader = [(torch.tensor([6.0]), torch.tensor([0.0])), (torch.tensor([0.0]), torch.tensor([8.0]))]
        >>> sam = SAM(w, rho=1.0, source=FromLoader(loader))
        >>> value = sam.backward(loss, torch.ones(4), torch.ones(4))  # climbs along (3, 4)
        >>> [round(t.grad.item(), 4) for t in w]
        [1.6, 1.8]
    """

    def __init__(self, loader: Iterable[Any], num_batches: int | None = None) -> None:
        if num_batches is not None and num_batches < 1:
            raise ValueError(f"num_batches must be positive, got {num_batches}.")
        self.loader = loader
        self.num_batches = num_batches
        self._round, self._drawn = 0, 0
        self._rounds = _Rounds()

    def ascent_batch(self, batch: Batch) -> MicroBatches:  # noqa: ARG002 - the protocol's
        """The batches of this call's climb."""
        if self.num_batches is None:
            return MicroBatches(self.loader)
        return MicroBatches([self._next() for _ in range(self.num_batches)])

    def end(self, call: Call) -> None:  # noqa: ARG002 - the hook's
        """The batches of a call that went well are not asked for again."""
        self._rounds.held.clear()

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the current round were drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state``: the same batches follow if the loader is in the same order."""
        self._round, self._drawn, self._rounds = 0, state["drawn"], _Rounds()

    def _next(self) -> Any:
        for _ in range(2):
            batch = self._rounds.batch(self.loader, self._round, self._drawn)
            if batch is not _END:
                self._drawn += 1
                return batch
            self._round, self._drawn = self._round + 1, 0
        raise ValueError("loader must hold at least one batch, got none.")


_END = object()


class _Rounds:
    """Passes over a loader, of which every batch is drawn once.

    What was drawn is held until it is cleared, since no loader goes back. Without a ``__dict__`` this is not
    put back, either, when a call fails: the batches that it asks for again are here.
    """

    __slots__ = ("_loaded", "_number", "held")

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], Any] = {}
        self._loaded: Iterator[Any] = iter(())
        self._number = -1

    def batch(self, loader: Iterable[Any], number: int, drawn: int) -> Any:
        """The batch after the first ``drawn`` of a round, or ``_END``."""
        if (number, drawn) not in self.held:
            if number != self._number:
                self._loaded, self._number = _rest(loader, drawn), number
            self.held[number, drawn] = next(self._loaded, _END)
        return self.held[number, drawn]


def _rest(loader: Iterable[Any], drawn: int) -> Iterator[Any]:
    """A round, or the rest of one that was begun, which drew its random numbers then."""
    if drawn == 0:
        return iter(loader)
    with torch.random.fork_rng(devices=[]):
        begun = iter(loader)
        next(islice(begun, drawn - 1, None), None)
        return begun
