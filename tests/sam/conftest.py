"""Fixtures of the tests of the core."""

import pytest
import torch
from jaxtyping import config


@pytest.fixture
def untyped():
    """Without the type checks that only pytest switches on: users meet the library's own messages."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """These tensors are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
