"""What is put back at the end of a block, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def finally_surely(restore: Callable[[], object]) -> Iterator[None]:
    """After the block ``restore`` is called, and once more if it is interrupted."""
    try:
        yield
    finally:
        try:
            restore()
        except BaseException:
            restore()
            raise
