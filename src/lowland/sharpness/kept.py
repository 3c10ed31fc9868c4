"""What a measure leaves as it was, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lowland.sam.randomness import RandomState


@contextmanager
def finally_surely(restore: Callable[[], object]) -> Iterator[None]:
    """After the block ``restore`` is called, and once more if it is interrupted."""
    try:
        yield
    finally:
        try:
            restore()
        except BaseException:
            restore()
            raise


@contextmanager
def generators_kept(tensors: Iterable[Tensor]) -> Iterator[RandomState]:
    """The generators of the tensors' devices are put back after the block, and the mode of gradients.

    Yields:
        Their state.
    """
    enabled = torch.is_grad_enabled()
    generators = RandomState.capture(sorted({t.device for t in tensors}, key=str))

    def back() -> None:
        torch.set_grad_enabled(enabled)
        generators.restore()

    with finally_surely(back):
        yield generators
