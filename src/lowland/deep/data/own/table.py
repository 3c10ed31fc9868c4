"""Parquet files of the Hub's layout: pictures, sequences of tokens, or columns of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lowland.deep.data.locate import require_every_shard
from lowland.deep.data.own.decoded import Decoding
from lowland.deep.data.own.examples import Raw, part_called
from lowland.deep.data.own.pictures import Picture
from lowland.deep.data.parquet import damage_told, read_columns, schema_of
from lowland.errors import InputError
from lowland.runs.schema import parse_json

_TOKENS, _MASK = "input_ids", "attention_mask"
_TARGETS = ("label", "labels", "target", "targets", "y", "class")
"""What a column of targets is called where there are several that could be one."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what.

    Attributes:
        kind: ``pictures``, ``lists`` (of tokens or numbers), or ``numbers`` (a column each).
        inputs: One column, or of numbers all.
        target: The column of targets.
        names: Names of the classes, as the Hub's metadata has them.
        mask: The column that tells tokens from padding, as tokenizers call it; ``None`` if there is none.
    """

    kind: str
    inputs: tuple[str, ...]
    target: str
    names: tuple[str, ...]
    mask: str | None = None


def parts_of_files(root: Path) -> tuple[dict[str, tuple[Path, ...]], list[Path]]:
    """The files of each part, by their names or their folders', and those of no part.

    A file, or a folder in which nothing is called train, is the training part.

    Raises:
        InputError: If there is none, some of a part are missing, or a part is in several folders.
    """
    below = [root] if root.is_file() else sorted(p for p in root.rglob("*.parquet") if _is_shown(p, root))
    if not below:
        raise InputError(f"{root} must hold Parquet files, got none.")
    parts: dict[str, list[Path]] = {}
    left = []
    for path in below:
        part = part_called(path.stem.partition("-")[0]) or part_called(path.parent.name)
        if part is None:
            left.append(path)
        else:
            parts.setdefault(part, []).append(path)
    if "train" not in parts:
        if parts and root.is_dir():
            raise InputError(
                f"{root} must hold files of the part train, got {', '.join(sorted(parts))} only."
            )
        return {"train": tuple(below)}, []
    for files in parts.values():
        folders = sorted({path.parent for path in files})
        if len(folders) > 1:
            raise InputError(
                f"{root} must hold each part in one folder, got {_below(folders[0], root)} and "
                f"{_below(folders[1], root)}; give the one that is meant."
            )
        if any("-of-" in path.name for path in files):
            require_every_shard(folders[0], [path.name for path in files])
    return {part: tuple(parts[part]) for part in ("train", "validation", "test") if part in parts}, left


def columns_of(path: Path, *, input_column: str | None, target_column: str | None) -> Columns:
    """Which columns of a file are inputs, and which is the target, by their types and names.

    Raises:
        InputError: If that cannot be said; the sentence lists the columns.
    """
    schema = schema_of(path)
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} must have each column once, got {twice!r} again.")
    for option, name in (("input_column", input_column), ("target_column", target_column)):
        if name is not None and schema.names.count(name) != 1:
            raise InputError(f"{option} must be a column of {path}, {_listed(schema)}, got {name!r}.")
    target = target_column or _target(schema, path, input_column)
    others = [name for name in schema.names if name != target and not name.startswith("__index_level_")]
    kinds = {name: _kind(schema.field(name).type) for name in others}
    if input_column is not None:
        if input_column == target:
            raise InputError(f"input_column must be another than the target's, got {target!r}.")
        inputs: tuple[str, ...] = (input_column,)
    else:
        inputs = _inputs(kinds, path, schema)
    kind = kinds[inputs[0]]
    if kind is None:
        raise InputError(
            f"column {inputs[0]!r} of {path} must hold images, lists of numbers or numbers, "
            f"got {schema.field(inputs[0]).type}."
        )
    mask = _MASK if inputs == (_TOKENS,) and kinds.get(_MASK) == "lists" else None
    return Columns(kind, inputs, target, _class_names(schema, target), mask)


def raw_of_files(paths: Sequence[Path], columns: Columns, decoding: Decoding) -> Raw:
    """The rows of files, one file after the other.

    Raises:
        InputError: If a file cannot be read, or a row lacks something.
    """
    read = [*columns.inputs, columns.target, *([columns.mask] if columns.mask else [])]
    tables = [read_columns(path, read) for path in paths]
    where = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
    for path, table in zip(paths, tables, strict=True):
        if table.schema.types != tables[0].schema.types:
            raise InputError(
                f"{path} must have columns of the same types as {paths[0]}, got {_listed(table.schema)}."
            )
    table = pa.concat_tables(tables)
    _require_no_null(table, where)
    with damage_told(Path(where)):
        inputs = _inputs_of(table, columns, decoding, where)
        targets = _targets(table[columns.target], columns, where)
        return Raw(inputs, targets, None if columns.mask is None else _mask(table[columns.mask], inputs))


def _mask(column: pa.ChunkedArray, inputs: Any) -> Any:
    """The mask of sequences that are padded already; those of several lengths say it by themselves."""
    return np.asarray(column.to_pylist()) if len({len(row) for row in inputs}) == 1 else None


def _inputs_of(table: pa.Table, columns: Columns, decoding: Decoding, where: str) -> Any:
    first = table[columns.inputs[0]]
    if columns.kind == "pictures":
        return decoding.pixels(lambda: _encoded(first, where), where)
    if columns.kind == "lists":
        return [np.asarray(value) for value in first.to_pylist()]
    numbers = [table[name].to_numpy().astype(np.float32) for name in columns.inputs]
    return np.stack(numbers, axis=1)


def _target(schema: pa.Schema, path: Path, input_column: str | None) -> str:
    named = [name for name in schema.names if name.lower() in _TARGETS and name != input_column]
    if len(named) == 1:
        return str(named[0])
    able = [name for name in schema.names if name != input_column and _may_be_target(schema.field(name).type)]
    if len(able) == 1:
        return str(able[0])
    raise InputError(
        f"target_column must say which column of {path} has the targets, {_listed(schema)}, got none."
    )


def _may_be_target(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or _is_text(kind)
    )


def _inputs(kinds: Mapping[str, str | None], path: Path, schema: pa.Schema) -> tuple[str, ...]:
    """The one column of pictures or lists; else all columns of numbers."""
    for kind in ("pictures", "lists"):
        found = [name for name, own in kinds.items() if own == kind]
        if len(found) == 1 or _TOKENS in found:
            return (_TOKENS if _TOKENS in found else found[0],)
        if found:
            raise InputError(
                f"input_column must say which column of {path} has the inputs, {_listed(schema)}, got none."
            )
    numbers = tuple(name for name, kind in kinds.items() if kind == "numbers")
    unused = [name for name, kind in kinds.items() if kind is None]
    if not numbers or unused:
        raise InputError(
            f"{path} must have a column of images or lists, or columns of numbers only, "
            f"got {_listed(schema)}; input_column says which is meant."
        )
    return numbers


def _kind(kind: pa.DataType) -> str | None:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        held = kind.field(kind.get_field_index("bytes")).type
        return "pictures" if pa.types.is_binary(held) or pa.types.is_large_binary(held) else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "pictures"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        return "lists" if _is_number(inner) or _kind(inner) == "lists" else None
    return "numbers" if _is_number(kind) else None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _class_names(schema: pa.Schema, target: str) -> tuple[str, ...]:
    """What the Hub's metadata calls the classes; none if it says nothing, or targets are no numbers."""
    if not pa.types.is_integer(schema.field(target).type):
        return ()
    try:
        about = parse_json((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][target]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _require_no_null(table: pa.Table, where: str) -> None:
    for name in table.column_names:
        if table[name].null_count:
            row = pc.index(pc.is_null(table[name]), True).as_py()
            raise InputError(
                f"column {name!r} of {where} must have a value in every row, got none in row {row}."
            )


def _targets(column: pa.ChunkedArray, columns: Columns, where: str) -> Any:
    if columns.names:
        numbers = column.to_numpy()
        odd = np.flatnonzero((numbers < 0) | (numbers >= len(columns.names)))
        if len(odd):
            raise InputError(
                f"labels of {where} must lie in 0..{len(columns.names) - 1}, "
                f"got {numbers[odd[0]]} in row {odd[0]}."
            )
        return numbers
    is_plain = not (_is_text(column.type) or _kind(column.type) == "lists")
    return column.to_numpy() if is_plain else column.to_pylist()


def _encoded(column: pa.ChunkedArray, where: str) -> list[Picture]:
    held = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    found: list[Picture] = []
    for row, content in enumerate(held.to_pylist()):
        if content is None:
            raise InputError(f"row {row} of {where} must hold an image, got none.")
        found.append((f"row {row}", content))
    return found


def _is_shown(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _below(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder != root else "."
