"""What the commands that run many small simulations share: their directory, progress, pictures and table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lowland.errors import InputError
from lowland.figures.style import save_all
from lowland.runs import Run, config_hash, describe_environment, write_results
from lowland.runs.results import Outcome

_WIDE = 200
OnDone = Callable[[int], object]
Kept = TypeVar("Kept", bound=Outcome)


def carried_out(
    place: tuple[Mapping[str, Any], Path | None],
    count: int,
    conduct: Callable[[OnDone], Sequence[Kept]],
    pictures: Callable[[Sequence[Kept]], Mapping[str, Figure]],
    console: Console,
) -> Sequence[Kept] | None:
    """Runs an experiment, draws it and keeps it in its directory; ``None`` if that is done already.

    Args:
        place: The config, and the directory; by default runs/ and a name made from the config.
        count: Number of small runs.
        conduct: Does them; it is given what it calls whenever one has ended.
        pictures: Draws them, by name.
        console: Where to print.

    Raises:
        InputError: If the directory holds something else.
    """
    config, out = place
    path = out or Path("runs") / f"{config['command']}-{config_hash(config)}"
    run = Run.create(path, config, describe_environment())
    if run.is_finished:
        console.print(f"{path} is finished already; nothing to do.", highlight=False, soft_wrap=True)
        return None
    with run.locked():
        with _progress(count, console) as on_done:
            outcomes = conduct(on_done)
        for name, figure in pictures(outcomes).items():
            save_all(figure, path / name)
            console.print(f"picture: {path / name}.png", highlight=False, soft_wrap=True)
        write_results(run, outcomes)
    return outcomes


def require_positive(name: str, value: int | None) -> None:
    """Raises :class:`InputError` for a number that is given and not positive."""
    if value is not None and value < 1:
        raise InputError(f"{name} must be positive, got {value}.")


@contextmanager
def _progress(count: int, console: Console) -> Iterator[OnDone]:
    """To be called whenever one of ``count`` runs has ended; a bar on a terminal, silent elsewhere."""
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=count)
        yield lambda _: progress.advance(task)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], console: Console) -> None:
    """A line per kind of run: mean and standard deviation over its seeds.

    Args:
        rows: With ``run`` and numbers.
        columns: Which numbers, and what they are called; those that no row has are left out.
        console: Where to.
    """
    shown = {name: title for name, title in columns.items() if any(name in row for row in rows)}
    table = Table("", *shown.values(), box=None)
    for label in dict.fromkeys(row["run"] for row in rows):
        seeds = [row for row in rows if row["run"] == label]
        cells = [mean_and_deviation([row[n] for row in seeds if n in row]) for n in shown]
        table.add_row(label, *cells)
    print_wide(table, console)


def print_wide(table: Table, console: Console) -> None:
    """Prints a table that only a terminal may fold."""
    (console if console.is_terminal else Console(width=_WIDE)).print(table)


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
