"""Arrays in ``.npz`` files."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowland.errors import InputError

_DAMAGED = (ValueError, TypeError, EOFError, OSError, KeyError, NotImplementedError, RuntimeError, zlib.error)
"""What NumPy and zipfile make of files that are not whole, encrypted, or compressed by other means."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of numbers of an ``.npz`` file, read without running anything in it.

    Args:
        path: The file.

    Returns:
        The arrays by name, in this machine's order of bytes.

    Raises:
        InputError: If it is none, is not whole, or declares more than this machine's memory.
        FileNotFoundError: If there is none.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from lowland.runs import read_arrays
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "data.npz"
        ...     np.savez(path, X=np.eye(2), y=[1, 2])
        ...     print({name: array.shape for name, array in read_arrays(path).items()})
        {'X': (2, 2), 'y': (2,)}
    """
    with path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path} must be an .npz file of arrays.")
            _require_room(path, file)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: _numbers(path, name, arrays[name]) for name in arrays.files}
        except InputError:
            raise
        except (zipfile.BadZipFile, MemoryError, *_DAMAGED) as error:
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
            raise InputError(f"{path} must be an .npz file of arrays: {reason}.") from None


def _numbers(path: Path, name: str, array: Any) -> np.ndarray:
    """Real numbers in this machine's order of bytes."""
    if not isinstance(array, np.ndarray):  # a file that does not begin as an array does
        raise InputError(f"{path} must be an .npz file of arrays, {name} is none.")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path} must hold numbers only, {name} is of type {array.dtype}.")
    numbers: np.ndarray = array.astype(array.dtype.newbyteorder("="), copy=False)
    return numbers


def _require_room(path: Path, file: BinaryIO) -> None:
    """A few bytes of a compressed file may stand for any number."""
    with zipfile.ZipFile(file) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else declared
    if declared > there:
        raise InputError(f"{path} must fit into this machine's {there} bytes, it declares {declared}.")
