"""Read labelled images from Parquet files of the Hugging Face Hub's layout."""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from lowland.deep.data.source import ParquetSource
from lowland.errors import InputError

# Conversions that lose nothing.
_READABLE = {"L": {"L", "1"}, "RGB": {"RGB", "L", "1", "P"}}
_UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)


def read_images(
    paths: Sequence[Path], source: ParquetSource
) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, "n"]]:
    """The images and labels of all rows of the files, one file after the other.

    Args:
        paths: At least one file.
        source: Its column names, number of classes and mode of the images.

    Raises:
        InputError: If a file is not as the table says; the message names it, and the row at fault.
    """
    parts = [_read_file(path, source) for path in paths]
    sizes = [tuple(images.shape[2:]) for images, _ in parts]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise InputError(
                f"All images of {source.name} must have one size, "
                f"got {_by(sizes[0])} in {paths[0]} and {_by(size)} in {path}."
            )
    if len(parts) == 1:
        return parts[0]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _read_file(path: Path, source: ParquetSource) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, "n"]]:
    table = _columns(path, source)
    labels = _labels(table[source.label_column], path, source)
    encoded = pc.struct_field(table[source.image_column], "bytes").to_pylist()
    return _decode_all(encoded, path, source), labels


def _columns(path: Path, source: ParquetSource) -> pa.Table:
    with _opened(path) as file:
        schema = file.schema_arrow
        _require_columns(schema, schema.names, path, source)
        table = file.read(columns=[source.image_column, source.label_column])
    return _with_rows(table, path)


def schema_of(path: Path) -> pa.Schema:
    """The columns of a Parquet file, and their types.

    Raises:
        InputError: If it is none.
    """
    with _opened(path) as file:
        return file.schema_arrow


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file, which has rows.

    Raises:
        InputError: If it is none, is damaged, or has no such column.
    """
    with _opened(path) as file:
        missing = [name for name in names if file.schema_arrow.names.count(name) != 1]
        if missing:
            raise InputError(
                f"{path} must have the column {missing[0]!r} once, got {file.schema_arrow.names}."
            )
        table = file.read(columns=list(names))
    return _with_rows(table, path)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    with damage_told(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """What of a Parquet file is found to be damaged inside the block is an error of one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{path} must be a complete Parquet file, but reading it failed: {reason}."
        ) from error


def _with_rows(table: pa.Table, path: Path) -> pa.Table:
    if not len(table):
        raise InputError(f"{path} must have at least one row, got none.")
    return table


def _require_columns(schema: pa.Schema, names: list[str], path: Path, source: ParquetSource) -> None:
    image, label = source.image_column, source.label_column
    if names.count(image) != 1 or names.count(label) != 1:
        raise InputError(
            f"{path} must have the columns {image!r} and {label!r} of {source.name}, each once, got {names}."
        )
    kind = schema.field(image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise InputError(f"Column {image!r} of {path} must be a struct with a field 'bytes', got {kind}.")
    held = kind.field(kind.get_field_index("bytes")).type
    if not (pa.types.is_binary(held) or pa.types.is_large_binary(held)):
        raise InputError(f"The field 'bytes' of {path} must hold bytes, got {held}.")
    kind = schema.field(label).type
    if not pa.types.is_integer(kind):
        raise InputError(f"Column {label!r} of {path} must hold integers, got {kind}.")


def _labels(column: pa.ChunkedArray, path: Path, source: ParquetSource) -> Int64[Tensor, "n"]:
    labels = column.to_pylist()
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < source.num_classes:
            raise InputError(
                f"Labels of {source.name} must lie in 0..{source.num_classes - 1}, "
                f"got {label} in row {row} of {path}."
            )
    return torch.tensor(labels, dtype=torch.int64)


def _decode_all(encoded: list[bytes | None], path: Path, source: ParquetSource) -> UInt8[Tensor, "n c h w"]:
    first = _decode(encoded[0], 0, path, source)
    pixels = np.empty((len(encoded), *first.shape), np.uint8)
    # One thread: nearly all of Pillow's time for a small image is spent holding the interpreter's lock.
    for row, image_bytes in enumerate(encoded):
        image = _decode(image_bytes, row, path, source)
        if image.shape != first.shape:
            raise InputError(
                f"All images of {path} must have the size of the first, {_by(first.shape)}, "
                f"got {_by(image.shape)} in row {row}."
            )
        pixels[row] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode(encoded: bytes | None, row: int, path: Path, source: ParquetSource) -> UInt8[np.ndarray, "h w c"]:
    if encoded is None:
        raise InputError(f"Row {row} of {path} must hold an image, got none.")
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            image.load()
            if image.mode not in _READABLE[source.mode]:
                raise InputError(
                    f"Row {row} of {path} must hold an image of mode {source.mode}, got mode {image.mode}."
                )
            pixels = np.asarray(image if image.mode == source.mode else image.convert(source.mode))
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            f"Row {row} of {path} must hold a PNG or JPEG image that can be decoded, got {error}."
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _by(size: tuple[int, ...]) -> str:
    return f"{size[0]}×{size[1]}"
