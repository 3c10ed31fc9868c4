"""Hooks on what a loss saves for its backward pass: activation checkpointing, and offloading.

A checkpoint runs a part of the loss again, in the backward pass, when ``vmap`` and the tape are gone: it is
told to enter both.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lowland.sam.unbatchable import Unbatchable

_CHECKPOINT = "torch.utils.checkpoint._checkpoint_hook.__init__"
_AGAIN = "torch.utils.checkpoint._recomputation_hook.__init__"
_SELECTIVE = "_CachingTorchDispatchMode"
_OFFLOAD = "torch.autograd.graph.save_on_cpu.__init__"


def follow(hooks: Any, again: Callable[[], AbstractContextManager[None]]) -> bool:
    """Sees to it that what ``hooks`` run again is run in the block ``again``.

    Args:
        hooks: The innermost hooks on saved tensors, set by the loss.
        again: The block of the pass.

    Returns:
        Whether something is run twice.

    Raises:
        Unbatchable: If they are others than those of a checkpoint that keeps its inputs only, or of
            ``save_on_cpu``.
    """
    pack = hooks[0]
    place = f"{pack.__module__}.{pack.__qualname__}".partition(".<locals>")[0]
    if place == _CHECKPOINT:
        if any(type(mode).__name__ == _SELECTIVE for mode in _get_current_dispatch_mode_stack()):
            raise Unbatchable("selective activation checkpointing, which keeps what rules write to")
        frame = _held(pack, "frame")
        if not isinstance(frame.recompute_fn, _Again):
            frame.recompute_fn = _Again(frame.recompute_fn, again)
    elif place not in {_AGAIN, _OFFLOAD}:
        raise Unbatchable(f"hooks on saved tensors, {place}")
    return place != _OFFLOAD


class _Again:
    """A part of a loss that is run once more.

    Args:
        run: Runs it.
        block: Where.
    """

    def __init__(self, run: Callable[..., None], block: Callable[[], AbstractContextManager[None]]) -> None:
        self._run, self._block = run, block

    def __call__(self, *args: Any) -> None:
        with self._block():
            self._run(*args)


def _held(function: Any, name: str) -> Any:
    """What a function holds of the one that it was made in."""
    return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents
