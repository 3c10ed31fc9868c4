"""Packages that only some of the library needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ModuleNotFoundError):
    """A package is not installed; the message says which extra of lowland brings it."""


@contextmanager
def needs(extra: str, *packages: str) -> Iterator[None]:
    """Inside the block packages of an extra are imported.

    Args:
        extra: Its name in ``pip install 'lowland[extra]'``.
        packages: What it brings.

    Raises:
        MissingExtra: If one of ``packages`` is not there. One that is there and cannot be imported, as for
            lack of a package of its own, raises its own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages or sys.modules.get(package) is not None:
            raise
        message = f"{package} must be installed, pip install 'lowland[{extra}]', got no such package."
        raise MissingExtra(message, name=package) from error
