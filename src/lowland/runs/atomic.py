"""Files that are either the old one or the new one, never half of one."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

_HERE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_PROCESS = uuid4().hex[:8]
"""Tells this process from an earlier one that had its number."""
_COUNT = itertools.count()
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<process>[0-9a-f]{8})-\d+\.tmp$")


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces ``path`` by what ``write`` writes, or leaves it as it was.

    ``write`` is given a temporary path in the same directory; the file is flushed to disk before it
    takes the place of the old one. Temporary files are named for the process that writes them, and what
    processes that are gone have left in the directory is removed first.

    Raises:
        OSError: If writing fails, e.g. on a full disk; the temporary file is gone, the old one whole.
    """
    for left in abandoned(path.parent):
        left.unlink(missing_ok=True)
    owner = f"{_HERE}-{os.getpid()}-{_PROCESS}"
    temporary = path.with_name(f".{path.name}.{owner}-{next(_COUNT)}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_default_mode())  # some writers make files that only their owner may read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether it is, by its name, a file that took or was to take the place of another."""
    return _TEMPORARY.match(path.name) is not None


def abandoned(folder: Path) -> Iterator[Path]:
    """Temporary files in a folder whose process is gone; those of another machine count as in use."""
    for path in folder.iterdir():
        owner = _TEMPORARY.match(path.name)
        if owner and owner["host"] == _HERE and not _is_alive(int(owner["pid"]), owner["process"]):
            yield path


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, atomically."""
    replace_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _is_alive(pid: int, process: str) -> bool:
    if pid == os.getpid():
        return process == _PROCESS
    if os.name == "nt":  # where asking would end it
        return True
    with contextlib.suppress(PermissionError, OverflowError):  # another user's process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
