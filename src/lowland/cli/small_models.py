"""What the commands that run many small simulations share: their directory, progress, pictures and table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from lowland.cli.output import Output, counted
from lowland.errors import InputError
from lowland.figures.style import save_all
from lowland.runs import Run, config_hash, describe_environment, write_results
from lowland.runs.results import Outcome

OnDone = Callable[[int], object]
Kept = TypeVar("Kept", bound=Outcome)


def carried_out(
    place: tuple[Mapping[str, Any], Path | None],
    count: int,
    conduct: Callable[[OnDone], Sequence[Kept]],
    pictures: Callable[[Sequence[Kept]], Mapping[str, Figure]],
    names: Collection[str],
    console: Output,
) -> list[dict[str, Any]]:
    """Runs an experiment, draws it and keeps it in its directory, unless that is done already.

    Of one that is done the rows are read; where a picture is missing, its runs are made again to draw it.

    Args:
        place: The config, and the directory; by default runs/ and a name made from the config.
        count: Number of small runs.
        conduct: Does them; it is given what it calls whenever one has ended.
        pictures: Draws them, by name.
        names: The names.
        console: Where to print.

    Returns:
        A row per small run.

    Raises:
        InputError: If the directory holds something else.
    """
    config, out = place
    path = out or Path("runs") / f"{config['command']}-{config_hash(config)}"
    run = Run.create(path, config, describe_environment())
    missing = missing_pictures(path, names)
    if run.is_finished:
        todo = f"{missing[0]} is missing and is drawn again" if missing else "nothing to do"
        console.say(f"{path} is finished already; {todo}.")
        if not missing:
            return read_rows(run)
    with run.locked():
        with counted("runs", count, console) as advance:
            outcomes = conduct(lambda _: advance())
        for name, figure in pictures(outcomes).items():
            if not run.is_finished or name in missing:
                save_all(figure, path / name)
                console.say(f"picture: {path / name}.png")
        if not run.is_finished:
            write_results(run, outcomes)
    return read_rows(run)


def missing_pictures(path: Path, names: Iterable[str]) -> list[str]:
    """Those of the names of which a file that :func:`~lowland.figures.style.save_all` writes is not there."""
    return [name for name in names if not all((path / f"{name}{s}").is_file() for s in (".png", ".pdf"))]


def read_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of a run; a number that JSON cannot hold is ``null`` there, and NaN here."""
    return [{name: math.nan if v is None else v for name, v in row.items()} for row in run.rows()]


def require_positive(name: str, value: int | None) -> None:
    """Raises :class:`InputError` for a number that is given and not positive."""
    if value is not None and value < 1:
        raise InputError(f"{name} must be positive, got {value}.")


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], console: Output) -> None:
    """A line per kind of run: mean and standard deviation over its seeds.

    Args:
        rows: With ``run`` and numbers.
        columns: Which numbers, and what they are called; those that no row has are left out.
        console: Where to.
    """
    shown = {name: title for name, title in columns.items() if any(name in row for row in rows)}
    lines = []
    for label in dict.fromkeys(row["run"] for row in rows):
        seeds = [row for row in rows if row["run"] == label]
        cells = [mean_and_deviation([row[n] for row in seeds if n in row]) for n in shown]
        lines.append([label, *cells])
    console.table(["", *shown.values()], lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    """``mean``, and the standard deviation of a sample where there are several.

    Example:
        >>> mean_and_deviation([1.0, 3.0]), mean_and_deviation([0.015056044]), mean_and_deviation([])
        ('2 ± 1.4', '0.01506', '-')
    """
    if not values:
        return "-"
    mean = f"{np.mean(values):.4g}"
    return f"{mean} ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else mean
