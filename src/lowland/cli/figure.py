"""``lowland figure``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, Progress, TaskID, TimeElapsedColumn

from lowland.cli.arguments import parse
from lowland.cli.interrupts import stop_on_signals
from lowland.cli.output import Output, words
from lowland.cli.sources import sources_and_options
from lowland.cli.sweeps import require_positive
from lowland.deep import Interrupted, Place, load_data
from lowland.errors import InputError, one_of, require_default
from lowland.figures.paper import FIGURES, Claim, PaperFigure, Scale
from lowland.figures.paper.files import drawn, estimated
from lowland.figures.tasks import (
    Engine,
    Failures,
    Here,
    Processes,
    Simulation,
    Store,
    Task,
    Training,
    Watch,
    carried_out,
    unfinished,
)

_USAGE = "lowland figure NAME ..."


@dataclass(frozen=True)
class FigureCommand:
    """Run what figures of the paper need, and draw them: lowland figure NAME ...

    The name all means every figure.

    Attributes:
        list: Name the figures, and what each shows.
        scale: quick (minutes, 45 at most, of two cores), small (a night of them), paper (the paper's own).
        out: Directory of the pictures and of the runs, which figures share.
        jobs: Runs at once, which share the cores; by default one per core at scale quick, else one.
        engine: Where runs happen: in processes of their own, or one after the other in this one.
        dry_run: Say what would be run and about how long it takes, and stop.
        data_dir: Folder with data sets, DIR/mnist/*.parquet and so on; else $LOWLAND_DATA, else a download.
        device: cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.
    """

    list: bool = False
    scale: Scale = "quick"
    out: Path = Path("runs/figures")
    jobs: int | None = None
    engine: Literal["processes", "here"] = "processes"
    dry_run: bool = False
    data_dir: Path | None = None
    device: str = "auto"


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0, 1 if a run failed, 130 if it was interrupted."""
    names, options = sources_and_options(argv, _USAGE, what="names of figures", alone="--list")
    command, console = parse(FigureCommand, options, prog=_USAGE), Output()
    if command.list:
        if names:
            raise InputError(f"names of figures must be left out with --list, got {names[0]}.")
        every = [field.name for field in fields(command) if field.name != "list"]
        require_default(command, every, "with --list, which only names the figures")
        return _listed(console)
    require_positive("jobs", command.jobs)
    if command.engine == "here" and command.jobs not in (None, 1):
        raise InputError(f"jobs must be left out for engine here, which has one, got {command.jobs}.")
    figures = _asked(names)
    store = Store(command.out / "runs")
    tasks = [task for figure in figures for task in figure.runs(command.scale)]
    if command.dry_run:
        require_default(
            command, ("jobs", "engine", "data_dir", "device"), "with --dry-run, which runs nothing"
        )
        return _announced(figures, command, store, console)
    if all(isinstance(task, Simulation) for task in tasks):
        require_default(command, ("data_dir", "device"), "for figures without deep networks")
    Place(command.device).torch_device()
    _require_data(tasks, store, command.data_dir)
    failures: Failures = {}
    with stop_on_signals() as should_stop, _watching(tasks, store, console) as watch:
        try:
            failures = carried_out(
                tasks, store, _engine(command), place=_place(command), watch=watch, should_stop=should_stop
            )
        except Interrupted:
            console.say("stopped; the same command continues.")
            return 130
    for figure in figures:
        result = drawn(figure, command.scale, command.out, failures=failures)
        if result is None:
            console.say(f"not drawn: {figure.name}, none of its runs is there.")
            continue
        _print_claims(figure, result.claims, console)
        without = f", drawn without {len(result.missing)} of its runs" if result.missing else ""
        console.say(f"picture: {result.picture}.png{without}")
    for name, reason in failures.items():
        console.say(f"failed: {name}: {reason}")
    return 1 if failures else 0


def _asked(names: Sequence[str]) -> list[PaperFigure]:
    for name in names:
        one_of("figure", name, [*FIGURES, "all"])
    if "all" in names:
        return list(FIGURES.values())
    return [FIGURES[name] for name in dict.fromkeys(names)]


def _require_data(tasks: Sequence[Task], store: Store, data_dir: Path | None) -> None:
    """Reads each data set that is needed, so that one that cannot be had is told before anything runs."""
    todo = unfinished(tasks, store)
    configs = {task.config.dataset: task.config for task in todo if isinstance(task, Training)}
    for config in configs.values():
        load_data(config, data_dir)


def _listed(console: Output) -> int:
    rows = [[figure.name, figure.title, figure.source] for figure in FIGURES.values()]
    console.table(["figure", "shows", "in the paper"], rows)
    return 0


def _jobs(command: FigureCommand) -> int:
    return command.jobs or ((os.cpu_count() or 1) if command.scale == "quick" else 1)


def _engine(command: FigureCommand) -> Engine:
    return Here() if command.engine == "here" else Processes(_jobs(command))


def _place(command: FigureCommand) -> Place:
    jobs = 1 if command.engine == "here" else _jobs(command)
    return Place(command.device, command.data_dir, max(1, (os.cpu_count() or 1) // jobs))


def _announced(figures: Sequence[PaperFigure], command: FigureCommand, store: Store, console: Output) -> int:
    rows = estimated(figures, command.scale, store)
    lines = []
    for row in rows:
        minutes = f"{row['seconds'] / 60:.1f}"
        lines.append([row["figure"], str(row["tasks"]), str(row["done"]), str(row["shared"]), minutes])
    lines.append(["all", "", "", "", f"{sum(row['seconds'] for row in rows) / 60:.0f}"])
    console.table(["figure", "tasks", "done", "shared", "core-minutes, about"], lines)
    return 0


def _print_claims(figure: PaperFigure, claims: Sequence[Claim], console: Output) -> None:
    rows = [[c.statement, c.published, c.ours, str(c.seeds), c.verdict] for c in claims]
    console.table(["", "published", "here", "seeds", ""], rows, title=figure.title)


@contextmanager
def _watching(tasks: Sequence[Task], store: Store, console: Output) -> Iterator[Watch]:
    """A bar for each running task on a terminal, else a line for each that has ended."""
    todo = len(unfinished(tasks, store))
    if not console.is_terminal:
        yield Lines(todo, console)
        return
    columns = (words("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield Bars(todo, progress, console)


class Lines:
    """One line per task."""

    def __init__(self, todo: int, console: Output) -> None:
        self._todo, self._console, self._ended = todo, console, 0

    def on_start(self, task: Task) -> None:
        """Says nothing."""

    def on_progress(self, task: Task, share: float) -> None:
        """Says nothing."""

    def on_end(self, task: Task, failure: str | None, seconds: float) -> None:
        """Says what has ended, and how."""
        self._ended += 1
        how = f"{seconds:.0f} s" if failure is None else f"failed: {failure}"
        self._console.say(f"{self._ended}/{self._todo}  {task.name}  {how}")


class Bars:
    """A bar per running task, and one for all."""

    def __init__(self, todo: int, progress: Progress, console: Output) -> None:
        self._progress, self._console = progress, console
        self._all = progress.add_task("all", total=todo)
        self._bars: dict[str, TaskID] = {}

    def on_start(self, task: Task) -> None:
        """Adds its bar."""
        self._bars[task.name] = self._progress.add_task(task.name, total=1.0)

    def on_progress(self, task: Task, share: float) -> None:
        """Moves it."""
        self._progress.update(self._bars[task.name], completed=share)

    def on_end(self, task: Task, failure: str | None, _: float) -> None:
        """Removes it; a failure stays to be read."""
        if failure is not None:
            self._console.say(f"failed: {task.name}: {failure}")
        if task.name in self._bars:
            self._progress.remove_task(self._bars.pop(task.name))
        self._progress.advance(self._all)
