"""Independent random streams from one seed."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lowland.sam.randomness import RandomState
from lowland.sam.surely import finally_surely


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on each of ``names``.

    Every random draw of a run is a function of the run's seed and of what it is for, so that runs that
    differ in one option see the same data order, augmentation and noise, and a resumed run needs no
    generator's state.

    Args:
        seed: The run's seed.
        names: What the stream is for, e.g. ``"order", epoch``.

    Example:
        >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
        True
        >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 2)
        False
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seeds the default generators of PyTorch, NumPy and Python, from which code of the user's may draw."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- the generator that users' code draws from
    random.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """After the block the default generators of PyTorch, NumPy and Python are what they were."""
    with torch.random.fork_rng(), finally_surely(RandomState.capture([]).restore):
        yield
