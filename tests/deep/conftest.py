"""Fixtures of the tests of the training room."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's folders; what is decoded is decoded once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWLAND_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LOWLAND_DATA", raising=False)
        yield
