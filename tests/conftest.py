"""What the tests of every room share."""

import os
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Without the type checks that only pytest switches on: users meet the library's own messages."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
