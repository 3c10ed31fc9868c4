"""``lowland figure``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lowland.cli.arguments import parse
from lowland.cli.carrying import OF_CARRYING, CarryingOptions, carry_out, check_carrying, engine_for
from lowland.cli.output import Output
from lowland.cli.sources import sources_and_options
from lowland.deep import Interrupted
from lowland.errors import InputError, one_of, require_default
from lowland.figures.paper import FIGURES, Claim, PaperFigure, Scale
from lowland.figures.paper.files import drawn, estimated
from lowland.sweeps import Simulation, Store

_USAGE = "lowland figure NAME ..."


@dataclass(frozen=True)
class FigureCommand(CarryingOptions):
    """Run what figures of the paper need, and draw them.

    The name all means every figure.

    Example:
        lowland figure fig1 fig6 --scale quick

    Attributes:
        list: Name the figures, and what each shows.
        scale: quick (minutes, 45 at most, of two cores), small (a night of them), paper (the paper's own).
        out: Directory of the pictures and of the runs, which figures share.
        dry_run: Say what would be run and about how long it takes, and stop.
    """

    list: bool = False
    scale: Scale = "quick"
    out: Path = Path("runs/figures")
    dry_run: bool = False


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
    check_carrying(command)
    figures = _asked(names)
    store = Store(command.out / "runs")
    tasks = [task for figure in figures for task in figure.runs(command.scale)]
    if command.dry_run:
        require_default(command, OF_CARRYING, "with --dry-run, which runs nothing")
        return _announced(figures, command, store, console)
    if all(isinstance(task, Simulation) for task in tasks):
        require_default(command, ("data_dir", "device"), "for figures without deep networks")
    jobs = (os.cpu_count() or 1) if command.scale == "quick" else 1
    engine = engine_for(tasks, store, command, jobs)
    try:
        failures = carry_out(tasks, store, engine, command, jobs, console)
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


def _listed(console: Output) -> int:
    rows = [[figure.name, figure.title, figure.source] for figure in FIGURES.values()]
    console.table(["figure", "shows", "in the paper"], rows)
    return 0


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
