"""What the tests of every room share."""

import os
import zlib
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)


_TYPED = 4


@pytest.fixture(autouse=True)
def typed_in_part(request: pytest.FixtureRequest) -> Iterator[None]:
    """Types and shapes are checked in every fourth test, by its name: checking takes longer than the code."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", zlib.crc32(request.node.nodeid.encode()) % _TYPED > 0)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Without the type checks that only pytest switches on: users meet the library's own messages."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
