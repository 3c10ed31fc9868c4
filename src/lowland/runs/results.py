"""The files of a run that holds several small ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lowland.errors import InputError
from lowland.runs.atomic import replace_atomically
from lowland.runs.directory import Run

Columns = Mapping[str, Any]
_NAMES: tuple[str, ...] = ("run", "seed")


@runtime_checkable
class Outcome(Protocol):
    """One of the small runs."""

    def row(self) -> dict[str, Any]:
        """Its numbers, with its ``run`` and, if there are several, its ``seed``."""

    def tables(self) -> Mapping[str, Columns]:
        """Its tables by name: columns of equal length."""


def write_results(run: Run, outcomes: Sequence[Outcome]) -> None:
    """Writes ``metrics.jsonl``, a Parquet file per table, and ``summary.json``, which ends the run.

    ``metrics.jsonl`` and the summary have a row per outcome. A table holds those of all outcomes under one
    another, with ``run`` and ``seed`` beside them.
    """
    rows = [outcome.row() for outcome in outcomes]
    run.keep_rows(0)
    for row in rows:
        run.append(row)
    named = [{key: row[key] for key in _NAMES if key in row} for row in rows]
    parts = [outcome.tables() for outcome in outcomes]
    for name in parts[0]:
        write_table(run.path / f"{name}.parquet", _stacked([part[name] for part in parts], named))
    run.finish({"runs": rows})


def write_table(path: Path, columns: Columns) -> None:
    """Writes columns of equal length as a Parquet file, atomically."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    replace_atomically(path, lambda temporary: pq.write_table(table, temporary))


def read_table(path: Path) -> dict[str, list[Any]]:
    """The columns of a Parquet file.

    Raises:
        InputError: If it is none.
    """
    try:
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} must be a Parquet file: {error}") from None
    return columns


def _stacked(parts: Sequence[Columns], named: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lengths = [len(next(iter(part.values()))) for part in parts]
    names = {name: np.repeat([values[name] for values in named], lengths) for name in named[0]}
    return names | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
