"""Fixtures of the tests of the training room."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's folders; what is decoded is decoded once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWLAND_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LOWLAND_DATA", raising=False)
        yield


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
