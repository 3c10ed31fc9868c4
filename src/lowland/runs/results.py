"""The files of a run that holds several small ones."""

from collections.abc import Collection, Mapping, Sequence
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

    Args:
        run: The run.
        outcomes: The small runs, at least one, each with ``row()`` and ``tables()``.

    Raises:
        OSError: If a file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.runs import Run, read_table, write_results
        >>> class Two:  # an outcome: a row of numbers, and tables
        ...     def row(self):
        ...         return {"run": "gd", "seed": 0, "loss": 0.25}
        ...     def tables(self):
        ...         return {"curves": {"step": [0, 1], "loss": [1.0, 0.25]}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run.create(Path(folder) / "gd", {"command": "mine"}, {})
        ...     write_results(run, [Two()])
        ...     print(run.summary["runs"][0]["loss"], read_table(run.path / "curves.parquet")["seed"])
        0.25 [0, 0]
    """
    rows = [outcome.row() for outcome in outcomes]
    run.keep_rows(0)
    for row in rows:
        run.append(row)
    for name in outcomes[0].tables():
        write_table(run.path / f"{name}.parquet", table_of(outcomes, name))
    run.finish({"runs": rows})


def table_of(outcomes: Sequence[Outcome], name: str) -> dict[str, Any]:
    """The columns of a table of all outcomes, with ``run`` and ``seed`` beside them.

    Args:
        outcomes: The small runs, each with ``row()`` and ``tables()``.
        name: The table's name.

    Example:
        >>> from lowland.runs import table_of
        >>> class Two:  # an outcome: a row of numbers, and tables
        ...     def row(self):
        ...         return {"run": "gd", "seed": 0, "loss": 0.25}
        ...     def tables(self):
        ...         return {"curves": {"step": [0, 1], "loss": [1.0, 0.25]}}
        >>> {name: column.tolist() for name, column in table_of([Two()], "curves").items()}
        {'run': ['gd', 'gd'], 'seed': [0, 0], 'step': [0, 1], 'loss': [1.0, 0.25]}
    """
    parts = [outcome.tables()[name] for outcome in outcomes]
    rows = [outcome.row() for outcome in outcomes]
    lengths = [len(next(iter(part.values()))) for part in parts]
    about = {key: np.repeat([row[key] for row in rows], lengths) for key in _NAMES if key in rows[0]}
    return about | {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def as_rows(columns: Columns) -> list[dict[str, Any]]:
    """The rows of a table, each with its columns' names.

    Args:
        columns: Columns of equal length, by name.

    Example:
        >>> from lowland.runs import as_rows
        >>> as_rows({"rho": [0.1, 0.2], "m": [1, 16]})
        [{'rho': 0.1, 'm': 1}, {'rho': 0.2, 'm': 16}]
    """
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write_table(path: Path, columns: Columns) -> None:
    """Writes columns of equal length as a Parquet file, atomically."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    replace_atomically(path, lambda temporary: pq.write_table(table, temporary))


def read_table(path: Path, required: Collection[str] = ()) -> dict[str, list[Any]]:
    """The columns of a Parquet file.

    Args:
        path: The file.
        required: Names of columns that it must have.

    Raises:
        InputError: If it is none, or lacks one of them.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> import pyarrow.parquet as pq
        >>> from lowland.runs import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "data.parquet"
        ...     pq.write_table(pa.table({"rho": [0.1, 0.2]}), path)
        ...     print(read_table(path, ["rho"]))
        {'rho': [0.1, 0.2]}
    """
    try:
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{path} must be a Parquet file: {reason}.") from None
    missing = sorted(set(required) - set(columns))
    if missing:
        raise InputError(f"{path} must have a column {missing[0]!r}, got {', '.join(columns) or 'none'}.")
    return columns
