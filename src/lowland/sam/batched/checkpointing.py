"""Hooks on what a loss saves for its backward pass: activation checkpointing, and offloading.

A checkpoint runs a part of the loss again, in the backward pass, when ``vmap`` and the tape are gone: it is
told to enter both.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lowland.sam.batched.level import leaf
from lowland.sam.place import place_of
from lowland.sam.private import dispatch_modes, is_in_vmap, saving_hooks, unseen_by_modes
from lowland.sam.unbatchable import Unbatchable

_CHECKPOINT = "torch.utils.checkpoint._checkpoint_hook.__init__"
_AGAIN = "torch.utils.checkpoint._recomputation_hook.__init__"
_SELECTIVE = "_CachingTorchDispatchMode"
_OFFLOAD = "torch.autograd.graph.save_on_cpu.__init__"


def follow(
    hooks: Any, again: Callable[[], AbstractContextManager[None]], note: Callable[[int], None]
) -> None:
    """Sees to it that what ``hooks`` run again is run in the block ``again``.

    Args:
        hooks: The innermost hooks on saved tensors, set by the loss.
        again: The block of the pass.
        note: Is told the bytes of what was saved there.

    Raises:
        Unbatchable: If they are others than those of a checkpoint that keeps its inputs only, or of
            ``save_on_cpu``.
    """
    pack = hooks[0]
    named = pack if hasattr(pack, "__qualname__") else type(pack)
    place = f"{named.__module__}.{named.__qualname__}".partition(".<locals>")[0]
    if place == _CHECKPOINT:
        if any(type(mode).__name__ == _SELECTIVE for mode in dispatch_modes()):
            raise Unbatchable("selective activation checkpointing, which keeps what rules write to")
        frame = _held(pack, "frame")
        if not isinstance(frame.recompute_fn, _Again):
            frame.recompute_fn = _Again(frame, again, note)
    elif place not in {_AGAIN, _OFFLOAD}:
        raise Unbatchable(f"hooks on saved tensors, {place}")


class _Again:
    """A part of a loss that is run once more.

    Args:
        frame: The checkpoint's record of it.
        block: Where.
        note: Is told the bytes of what was saved.
    """

    def __init__(
        self, frame: Any, block: Callable[[], AbstractContextManager[None]], note: Callable[[int], None]
    ) -> None:
        self._frame, self._run = weakref.ref(frame), frame.recompute_fn
        self._block, self._note = block, note

    def __call__(self, *args: Any) -> None:
        try:
            with self._block(), _needs_kept(saving_hooks()):
                self._run(*args)
        finally:
            frame = self._frame()
            saved = [t for found in frame.recomputed.values() for t in found.values()] if frame else []
            self._note(sum({place_of(t): t.numel() * t.element_size() for t in saved}.values()))


def _needs_kept(hooks: Any) -> AbstractContextManager[None]:
    """Hooks like ``hooks``, that see a gradient to be needed of a tensor inside ``vmap``, which hides it.

    What a checkpoint inside this one is given would not need one otherwise.
    """
    pack, unpack = hooks

    @functools.wraps(pack)
    def pack_as_needed(tensor: Tensor) -> Any:
        with unseen_by_modes():
            return pack(leaf(tensor) if is_in_vmap(tensor) else tensor)

    return torch.autograd.graph.saved_tensors_hooks(pack_as_needed, unpack)


def _held(function: Any, name: str) -> Any:
    """What a function holds of the one that it was made in."""
    return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents
