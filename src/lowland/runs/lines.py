"""Files of one JSON object per line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowland.errors import InputError
from lowland.runs.schema import JSONObject, conform, parse_json


def finite(value: Any) -> Any:
    """``value`` with ``None`` for every number that JSON cannot hold: a diverged run's losses."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one row, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    line = (json.dumps(finite(row)) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            written = file.write(line)
            if written < len(line):
                file.write(line[written:])  # raises what stopped it
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def read_lines(path: Path, kind: Any = JSONObject) -> list[dict[str, Any]]:
    r"""The rows, without a last line that a killed process left unfinished; none if there is no file.

    Args:
        path: The file.
        kind: What a row is, as for :func:`~lowland.runs.conform`.

    Raises:
        InputError: If a line is not a JSON object of ``kind``, as :func:`~lowland.runs.conform` says.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.runs import read_lines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "metrics.jsonl"
        ...     _ = path.write_text('{"loss": 0.5}\n{"loss": 0.25}\n{"lo')
        ...     print(read_lines(path, dict[str, float]))
        [{'loss': 0.5}, {'loss': 0.25}]
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    try:
        rows = [parse_json(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} must hold one JSON object per line: {error}.") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path} must hold one JSON object per line, got {row!r}.")
        conform(row, kind, "", of=f" in line {number} of {path}")
    return rows
