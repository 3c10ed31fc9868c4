"""What a measure leaves as it was, whatever happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lowland.sam.randomness import RandomState
from lowland.sam.surely import finally_surely


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
