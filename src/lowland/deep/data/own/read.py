"""Reads data of somebody's own, whatever they are kept in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowland.deep.data.cache import checksum, sha256_of
from lowland.deep.data.hub import HUB, download_own
from lowland.deep.data.own.arrays import arrays_in, parts_of_arrays
from lowland.deep.data.own.decoded import Decoding
from lowland.deep.data.own.examples import Examples, Found, OwnData, Raw
from lowland.deep.data.own.folder import parts_of_folder
from lowland.deep.data.own.inputs import settled_inputs
from lowland.deep.data.own.returned import parts_returned_by
from lowland.deep.data.own.table import columns_of, parts_of_files, raw_of_files
from lowland.deep.data.own.targets import require_same_length, settled_targets
from lowland.deep.functions import is_function
from lowland.deep.options import OwnDataOptions
from lowland.errors import InputError, require_default

_SHOWN, _NAMED = 2, 5
_OF_TABLES = ("input_column", "target_column")
_OF_PICTURES = ("image_size", "channels")


def read_own_data(
    options: OwnDataOptions, *, directory: Path | None = None, cache_dir: str | Path | None = None
) -> OwnData:
    """Data of somebody's own, checked; pictures from the cache if they were decoded before.

    Args:
        options: Where they are, and how they are read; ``data`` is given.
        directory: What a relative path begins at; by default the working directory.
        cache_dir: Folder of decoded images; see :func:`~lowland.deep.data.load_training_data`.

    Returns:
        The data, with what is known of them.

    Raises:
        InputError: If they are not there, cannot be read, or are not what can be trained on.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from lowland.deep.data import read_own_data
        >>> from lowland.deep.options import OwnDataOptions
        >>> x, y = np.arange(300.0).reshape(100, 3), np.arange(100) % 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/points.npz", x=x, y=y)
        ...     own = read_own_data(OwnDataOptions(data=f"{folder}/points.npz"))
        >>> own.form, own.classes, own.parts["train"].inputs.shape
        ('.npz file', ('0', '1'), torch.Size([100, 3]))
    """
    assert options.data is not None
    found = _found(options.data, options, directory or Path.cwd(), cache_dir)
    return _settled(options.data, found)


def _found(name: str, options: OwnDataOptions, directory: Path, cache_dir: str | Path | None) -> Found:
    if name.startswith(HUB):
        return _in_table(download_own(name), options, cache_dir)
    path = directory / os.path.expanduser(name)  # noqa: PTH111 -- of an unknown user pathlib raises
    if path.is_dir() and not any(path.rglob("*.parquet")):
        return _in_folder(path, options, cache_dir)
    if path.is_dir() or (path.is_file() and path.suffix == ".parquet"):
        return _in_table(path, options, cache_dir)
    if path.is_file() and path.suffix in (".npz", ".safetensors"):
        require_default(options, _OF_TABLES + _OF_PICTURES, f"for arrays in an {path.suffix} file")
        parts = parts_of_arrays(arrays_in(path), str(path))
        return Found(f"{path.suffix} file", parts, sha256=sha256_of([path]))
    if not path.exists() and is_function(name):
        require_default(options, _OF_TABLES + _OF_PICTURES, "for what a function returns")
        return Found("what a function returns", parts_returned_by(name))
    got = f"{path}" if path.exists() else f"{name!r}, and there is no {path}"
    raise InputError(
        "data must be a folder of images or Parquet files, a .parquet, .npz or .safetensors file, "
        f"hf://owner/name, or package.module:function, got {got}."
    )


def _in_folder(path: Path, options: OwnDataOptions, cache_dir: str | Path | None) -> Found:
    require_default(options, _OF_TABLES, "for an image folder")
    folders = parts_of_folder(path)
    parts: dict[str, Raw] = {}
    notes: list[str] = []
    hashes: list[str] = []
    for part, folder in folders.items():
        hashes.append(folder.hash())
        decoding = Decoding(f"{path.name}-{part}", hashes[-1], options, cache_dir)
        pixels = decoding.pixels(folder.pictures, str(folder.root))
        parts[part] = Raw(pixels, list(folder.classes))
        notes += decoding.notes
    left = [file for folder in folders.values() for file in folder.left]
    return Found("image folder", parts, (*notes, *_left(left, path)), _hash_of(hashes))


def _in_table(path: Path, options: OwnDataOptions, cache_dir: str | Path | None) -> Found:
    files, left = parts_of_files(path)
    columns = columns_of(
        files["train"][0], input_column=options.input_column, target_column=options.target_column
    )
    if columns.kind != "pictures":
        require_default(options, _OF_PICTURES, "for a table without images")
    parts: dict[str, Raw] = {}
    said = ", ".join(columns.inputs[:_NAMED]) + (", ..." if len(columns.inputs) > _NAMED else "")
    notes, hashes = [f"columns: {said} to {columns.target}"], list[str]()
    for part, paths in files.items():
        hashes.append(sha256_of(paths))
        decoding = Decoding(f"{path.stem}-{part}", hashes[-1], options, cache_dir)
        parts[part] = raw_of_files(paths, columns, decoding)
        notes += decoding.notes
    sha256 = _hash_of([*hashes, *columns.inputs, columns.target])
    return Found("Parquet files", parts, (*notes, *_left(left, path)), sha256, columns.names)


def _settled(name: str, found: Found) -> OwnData:
    """The parts as tensors, alike in all of them."""
    targets, classes = settled_targets({part: raw.targets for part, raw in found.parts.items()}, name)
    if classes and found.classes:
        classes = found.classes
    parts = {}
    for part, raw in found.parts.items():
        where = f"{name} ({part})"
        try:
            inputs, mask = settled_inputs(raw, where)
        except (TypeError, RuntimeError, OverflowError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise InputError(f"inputs of {where} must be numbers or pictures: {reason}.") from None
        require_same_length(("inputs", "targets"), (inputs, targets[part]), where)
        parts[part] = Examples(inputs, targets[part], mask)
    sha256 = found.sha256 or _hash_of([_hash_of_tensors(examples) for examples in parts.values()])
    return OwnData(name, found.form, _alike(parts, name), classes, tuple(dict.fromkeys(found.notes)), sha256)


def _alike(parts: Mapping[str, Examples], name: str) -> Mapping[str, Examples]:
    """The parts, whose examples must be of one shape; tokens are padded to the longest of all parts."""
    if parts["train"].mask is not None and all(examples.mask is not None for examples in parts.values()):
        longest = max(examples.inputs.shape[1] for examples in parts.values())
        parts = {part: examples.padded(longest) for part, examples in parts.items()}
    for what in ("inputs", "targets"):
        shapes = {part: _shape(examples, what) for part, examples in parts.items()}
        if len(set(shapes.values())) > 1:
            got = ", ".join(f"{shape} in {part}" for part, shape in shapes.items())
            raise InputError(f"{what} of {name} must be of one shape in all parts, got {got}.")
    return parts


def _shape(examples: Examples, what: str) -> str:
    kind = " tokens" if what == "inputs" and examples.mask is not None else ""
    return ("x".join(map(str, getattr(examples, what).shape[1:])) or "single") + kind


def _left(files: Sequence[Path], root: Path) -> list[str]:
    """What is said of files that were not read."""
    if not files:
        return []
    named = ", ".join(str(file.relative_to(root)) for file in files[:_SHOWN])
    more = ", ..." if len(files) > _SHOWN else ""
    return [f"left aside: {len(files)} other files ({named}{more})"]


def _hash_of(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def _hash_of_tensors(examples: Examples) -> str:
    tensors = {"inputs": examples.inputs, "targets": examples.targets}
    return checksum(tensors if examples.mask is None else tensors | {"mask": examples.mask})
