"""Decoded images in safetensors files: written once, opened by memory map, verified on every opening."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jaxtyping import Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowland.errors import InputError
from lowland.runs.atomic import replace_atomically

_log = logging.getLogger(__name__)

_FORMAT = "lowland-images-1"
_BLOCK = 1 << 20

Decoded = tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, "n"]]


def cached(
    name: str,
    sources: Sequence[Path],
    sha256: str,
    decode: Callable[[], Decoded],
    *,
    cache_dir: str | Path | None,
) -> Decoded:
    """The decoded images and labels of some source files, from the cache if they are there.

    As :func:`cached_tensors`, of which they are two.
    """

    def decoded() -> tuple[dict[str, Tensor], str]:
        images, labels = decode()
        return {"images": images, "labels": labels}, ""

    tensors, _ = cached_tensors(name, sources, sha256, decoded, cache_dir=cache_dir)
    if tensors.keys() != {"images", "labels"}:
        raise InputError(_damaged(_path(name, sha256, cache_dir), "it is something else"))
    return tensors["images"], tensors["labels"]


def cached_tensors(
    name: str,
    sources: Sequence[Path],
    sha256: str,
    make: Callable[[], tuple[dict[str, Tensor], str]],
    *,
    cache_dir: str | Path | None,
) -> tuple[dict[str, Tensor], str]:
    """Tensors that are made once, and a text about them.

    The file is ``<name>-<first 12 digits of sha256>.safetensors``. It appears under that name only when
    it is complete, so that an interrupted or a second process leaves nothing half written.

    Args:
        name: What the file's name begins with.
        sources: The files that were decoded; their names are noted.
        sha256: Hash of all that decides what is made.
        make: Makes the tensors and the text when there is no file yet.
        cache_dir: The folder; by default ``LOWLAND_CACHE`` in the environment, else ``lowland`` in
            ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        InputError: If the file is damaged or not made from these sources, or the folder cannot be written.
    """
    path = _path(name, sha256, cache_dir)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(_not_writable(path.parent, error)) from error
        _log.info("Decoding the images of %s into %s", name, path)
        tensors, about = make()
        metadata = {
            "format": _FORMAT,
            "sources": json.dumps([source.name for source in sources]),
            "sha256": sha256,
            "checksum": checksum(tensors),
            "about": about,
        }
        _write(path, tensors, metadata)
    return _open(path, sha256)


def _path(name: str, sha256: str, cache_dir: str | Path | None) -> Path:
    return cache_folder(cache_dir) / f"{name}-{sha256[:12]}.safetensors"


def sha256_of(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' bytes, one file after the other; for one file its ordinary hash."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where decoded data are: the given folder, or the one that the environment says."""
    given = cache_dir or os.environ.get("LOWLAND_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowland"


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        replace_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))
    except (OSError, SafetensorError) as error:
        raise InputError(_not_writable(path.parent, error)) from error


def _open(path: Path, sha256: str) -> tuple[dict[str, Tensor], str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(_damaged(path, f"reading it failed: {error}")) from error
    if metadata.get("format") != _FORMAT or "images" not in tensors:
        raise InputError(_damaged(path, "it is something else"))
    if metadata.get("sha256") != sha256:
        raise InputError(_damaged(path, "it was made from other files"))
    if metadata.get("checksum") != checksum(tensors):
        raise InputError(_damaged(path, "its checksum is wrong"))
    return tensors, metadata.get("about", "")


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} must be decoded images as lowland wrote them, but {reason}; delete it and it is made again."
    )


def _not_writable(folder: Path, error: Exception) -> str:
    return f"The cache folder {folder} must be writable, but writing failed: {str(error).rstrip('.')}."
