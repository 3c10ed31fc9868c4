"""Fixtures of the tests of the core."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """These tensors are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
