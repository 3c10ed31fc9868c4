"""What the tests of every room share."""

from collections.abc import Iterator

import pytest
from jaxtyping import config


@pytest.fixture
def untyped() -> Iterator[None]:
    """Without the type checks that only pytest switches on: users meet the library's own messages."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
