"""Files of tensors with a checksum over every byte."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowland.errors import InputError
from lowland.runs.atomic import replace_atomically

_KEY, _HASH = "lowland", "blake2b:"
_UNSEALED = _HASH + 64 * "0"
_SEAL = re.compile(rb'"lowland":"blake2b:([0-9a-f]{64})"')
"""A quotation mark inside a value is written with a backslash, so that this cannot be part of one."""
_LONGEST_HEADER = 100_000_000
_BLOCK = 1 << 20


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically, with a checksum over all of its bytes in its metadata.

    The checksum is that of the file with zeros in its place. It stays with the file, wherever that goes, and
    every reader of safetensors reads such a file.

    Raises:
        OSError: If it cannot be written; the file that was there is whole.
    """
    contiguous = _apart({name: t.detach().contiguous() for name, t in tensors.items()})
    unsealed = (metadata or {}) | {_KEY: _UNSEALED}

    def write(temporary: Path) -> None:
        save_file(contiguous, temporary, unsealed)
        _seal(temporary)

    try:
        replace_atomically(path, write)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path} could not be written: {error}") from error


def read_tensors(path: Path, *, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, whose checksum is right if it has one.

    Raises:
        InputError: If the file is not whole.
    """
    metadata = read_metadata(path)
    with safe_open(path, framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, of a file that is as whole as :func:`read_tensors` requires."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        _require_seal(path, metadata)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} must be a whole safetensors file: {str(error).rstrip('.')}.") from None
    return metadata


def is_sealed(metadata: Mapping[str, str]) -> bool:
    """Whether a file of such metadata has a checksum, right or damaged."""
    return _KEY in metadata or any(value.startswith(_HASH) for value in metadata.values())


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which none shares memory with another, as tied weights do: the format knows no such."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _seal(path: Path) -> None:
    with path.open("rb+") as file:
        header = _header(file)
        digest = _digest(header, file)
        file.seek(next(_SEAL.finditer(header)).start(1))
        file.write(digest)


def _require_seal(path: Path, metadata: Mapping[str, str]) -> None:
    with path.open("rb") as file:
        header = _header(file)
        seals = list(_SEAL.finditer(header))
        if not seals and not is_sealed(metadata):  # another program's
            return
        if len(seals) != 1:
            raise ValueError("its checksum is damaged")
        start, end = seals[0].span(1)
        if seals[0][1] != _digest(header[:start] + 64 * b"0" + header[end:], file):
            raise ValueError("its bytes are not those that its checksum is of")


def _header(file: BinaryIO) -> bytes:
    """The bytes before the tensors' own."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))


def _digest(header: bytes, rest: BinaryIO) -> bytes:
    digest = hashlib.blake2b(header, digest_size=32)
    while block := rest.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest().encode()
