"""Caches of what was computed from the weights, which the weights leave behind when they move."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.utils import parametrize


@contextmanager
def fresh_caches() -> Iterator[None]:
    """Inside and after the block, nothing is reused that was computed from the weights before it.

    Within one ``torch.autocast`` or ``parametrize.cached`` block two passes would otherwise share the
    casts and the parametrized weights of the first: SAM would silently be ERM, or run into a graph that
    is already freed.
    """
    forget_caches()
    try:
        yield
    finally:
        forget_caches()


def forget_caches() -> None:
    """Forgets what was computed from the weights, in the caches of autocast and of parametrizations."""
    torch.clear_autocast_cache()
    parametrize._cache.clear()
