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


@pytest.fixture
def at_once(monkeypatch):
    """``auto`` runs groups at once wherever it can: what is faster is a matter of the machine."""
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    monkeypatch.setattr("lowland.sam.batched.probe.seconds", lambda *_, **__: (2.0, 1.0))
