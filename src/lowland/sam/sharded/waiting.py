"""Gradients that are there before a call, set aside for its passes, which would add to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lowland.sam.sharded.fsdp import Units, largest


class Waiting:
    """The gradients of a sharded model, as they are when this is made.

    Those in ``.grad`` are set aside. So are those that FSDP has not reduced yet, since the user told it to
    wait, in a call that waits too and adds to them, or that only returns its own. Another call has them
    reduced with its own, and they are copied before that, in case it fails.

    Args:
        units: The units of the model.
        aside: Whether what is not reduced yet is set aside.
    """

    def __init__(self, units: Units, *, aside: bool) -> None:
        self._aside = aside
        self._kept = units.kept()
        self._grads = [kept.shard.grad for kept in self._kept]
        self._pending = [kept.pending for kept in self._kept]
        if not aside:
            self._pending = [(_copy(a), _copy(b)) for a, b in self._pending]
        for kept in self._kept:
            kept.shard.grad = None
            if aside:
                kept.pending = None, None

    def found(self) -> dict[int, Tensor | None]:
        """What the call has reduced, by the identities of the sharded parameters."""
        return {id(kept.shard): kept.shard.grad for kept in self._kept}

    def any_found(self) -> bool:
        """Whether the call has found some gradient."""
        new = (g for kept in self._kept for g in kept.pending if self._aside)
        return any(g is not None for g in (*self.found().values(), *new))

    def keep(self) -> None:
        """Ends the call: what was set aside is there again, with what waits of the call added to it."""
        if self._aside:
            for kept, (a, b) in zip(self._kept, self._pending, strict=True):
                own, wide = kept.pending
                kept.pending = _sum(a, own), _sum(b, wide)
        self._put_grads_back()

    def undo(self) -> None:
        """Everything is what it was."""
        for kept, pending in zip(self._kept, self._pending, strict=True):
            kept.pending = pending
        self._put_grads_back()

    def _put_grads_back(self) -> None:
        for kept, grad in zip(self._kept, self._grads, strict=True):
            kept.shard.grad = grad


def _copy(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The sum, in the memory of the old one."""
    if old is None or new is None:
        return new if old is None else old
    return old.add_(new)


def any_waits(units: Units) -> bool:
    """Whether FSDP keeps some gradient that it has not reduced."""
    return any(g is not None for kept in units.kept() for g in kept.pending)


def any_somewhere(module: nn.Module, gradients: Sequence[Any]) -> bool:
    """Whether FSDP keeps a gradient, or some rank's part of the ``gradients`` is not zero; all ranks ask."""
    if not gradients:
        return any_waits(Units(module))
    mesh, own = gradients[0].device_mesh, [g.to_local() for g in gradients]
    return largest(mesh, int(any(bool(g.any()) for g in own)), own[0].device) > 0 or any_waits(Units(module))
