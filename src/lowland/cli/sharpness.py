"""``lowland sharpness``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TimeRemainingColumn

from lowland.cli.arguments import parse, part_of
from lowland.cli.output import Output, words
from lowland.cli.sources import names_of, of_several, sources_and_options
from lowland.deep.examined import Examined
from lowland.deep.flatness import FlatnessConfig
from lowland.deep.measures import Row, Taken, measures
from lowland.deep.records import MeasureRow, number_of
from lowland.deep.several import load_subjects
from lowland.deep.subject import Subject, SubjectOptions
from lowland.figures.sharpness import plot_densities, plot_sharpness
from lowland.figures.style import save_all
from lowland.runs import read_lines
from lowland.runs.lines import append_line
from lowland.runs.threads import require_threads
from lowland.sharpness import SpectralDensity

FILE = "sharpness.jsonl"
_COLUMNS = 4
_Asked = tuple[str, str, str]
"""Measure, m and radius, as they are printed."""


@dataclass(frozen=True)
class SharpnessCommand(FlatnessConfig, SubjectOptions):
    """Measure how flat networks are.

    Each is a run directory, a file of weights, or package.module:function. What is in the sharpness.jsonl of
    a run directory is not measured again.

    Example:
        lowland sharpness runs/erm runs/sam --rho 0.05 0.1 --m 1 16 128

    Attributes:
        out: Directory for pictures, and for the numbers of networks that are not runs; by default the run,
            or, for a picture of several networks, runs/ and a name made from theirs.
        threads: CPU threads.
        quiet: No progress bar.
    """

    out: Path | None = None
    threads: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        """Leaves the checks to the config."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    sources, options = sources_and_options(argv, "lowland sharpness RUN_OR_FILE ...")
    command, console = parse(SharpnessCommand, options, prog="lowland sharpness RUN_OR_FILE ..."), Output()
    config = part_of(command, FlatnessConfig)
    require_threads(command.threads)
    if command.threads is not None:
        torch.set_num_threads(command.threads)
    names = names_of(sources)
    subjects = load_subjects(sources, command)
    taken = {}
    for name, subject in zip(names, subjects, strict=True):
        with _progress(name, console, quiet=command.quiet) as on_progress:
            taken[name] = _measured(subject, config, command.out, on_progress)
    levels = {name: Examined.of(one.subject, config).level() for name, one in taken.items()}
    _print(taken, levels, console)
    _draw(taken, _directory(command.out, sources, subjects), console)
    return 0


def _measured(subject: Subject, config: FlatnessConfig, out: Path | None, on_progress: Any) -> Taken:
    directory = subject.run.path if subject.run is not None else out
    if directory is None:
        return measures(subject, config, on_progress=on_progress)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    identity = {"network": subject.name, "kind": subject.kind, "data": subject.data}
    identity |= {"weights": subject.fingerprint(), **subject.made_of}
    known = [row for row in read_lines(path, MeasureRow) if identity.items() <= row.items()]

    def keep(row: Row) -> None:
        append_line(path, identity | row)

    return measures(subject, config, known=known, on_row=keep, on_progress=on_progress)


def _print(taken: dict[str, Taken], levels: dict[str, dict[str, float]], console: Output) -> None:
    """A column per network, or a line for each where they are many or wide."""
    lines = _level_lines(levels)
    for key in dict.fromkeys(_key(row) for one in taken.values() for row in one.rows):
        measure, m, rho = key
        asked = (measure, "" if m is None else str(m), "" if rho is None else f"{rho:g}")
        lines[asked] = {name: _of_key(one, key) for name, one in taken.items()}
    wide = [[*asked, *cells.values()] for asked, cells in lines.items()]
    long = [[*asked, name, cell] for asked, cells in lines.items() for name, cell in cells.items()]
    heads = ["measure", "m", "ρ"]
    if len(taken) > _COLUMNS or not console.fits([*heads, *taken], wide):
        console.table([*heads, "network", ""], long)
    else:
        console.table([*heads, *taken], wide)


def _level_lines(levels: dict[str, dict[str, float]]) -> dict[_Asked, dict[str, str]]:
    """The loss and the errors that rises are from, which show whether the right weights were loaded."""
    lines = {("loss", "", ""): {name: f"{level['loss']:.4g}" for name, level in levels.items()}}
    if any("error" in level for level in levels.values()):
        errors = {
            n: f"{100 * level['error']:.1f}" if "error" in level else "-" for n, level in levels.items()
        }
        lines["error (%)", "", ""] = errors
    return lines


def _of_key(one: Taken, key: tuple[str, Any, Any]) -> str:
    row = next((row for row in one.rows if _key(row) == key), None)
    return "-" if row is None else _cell(row)


def _key(row: Row) -> tuple[str, Any, Any]:
    return str(row["measure"]), row.get("m"), row.get("rho")


def _cell(row: Row) -> str:
    value, error = row["value"], row.get("stderr")
    text = "-" if value is None else f"{value:.4g}"
    text += f" ± {error:.2g}" if error is not None and error == error else ""
    if row.get("longer") is not None:
        text += f"  ({_more(row['longer'], value)} in {row['longer_steps']} steps)"
    if row.get("starts") is not None:
        starts = [number_of(value) for value in row["starts"]]
        text += f"  (starts {min(starts):.3g} to {max(starts):.3g})"
    if row.get("error_rise") is not None:
        text += f"  (error {100 * row['error_rise']:+.1f} %)"
    if row.get("ratio") is not None and row["ratio"] == row["ratio"]:
        low = row.get("smallest")
        text += f"  (λ₁/λ₅ {row['ratio']:.2g}{'' if low is None else f', smallest {low:.2g}'})"
    if row.get("edge") is not None:
        text += f"  (edge {row['edge']:.3g})"
    return text


def _more(longer: float, value: float) -> str:
    """By how much a longer search finds more."""
    return f"{100 * (longer - value) / abs(value):+.1f} %" if value else f"{longer:.4g}"


def _directory(out: Path | None, sources: Sequence[str], subjects: Sequence[Subject]) -> Path | None:
    """Of the picture: the run's, if there is one network; several have a directory of their own."""
    if out is not None:
        return out
    if len(subjects) > 1:
        return of_several("sharpness", sources)
    return subjects[0].run.path if subjects[0].run is not None else None


def _draw(taken: dict[str, Taken], directory: Path | None, console: Output) -> None:
    if directory is None:
        return
    pictures = {}
    if any("rho" in row for one in taken.values() for row in one.rows):
        pictures["sharpness"] = plot_sharpness({name: one.rows for name, one in taken.items()})
    densities = {
        name: SpectralDensity(one.densities["nodes"], one.densities["weights"], 0, 0)
        for name, one in taken.items()
        if one.densities
    }
    if densities:
        pictures["density"] = plot_densities(densities)
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        save_all(figure, directory / name)
        console.say(f"picture: {directory / name}.png")


@contextmanager
def _progress(name: str, console: Output, *, quiet: bool) -> Iterator[Any]:
    """To be called with a measure and the share of it that is done; a bar on a terminal, silent elsewhere."""
    if quiet or not console.is_terminal:
        yield lambda *_: None
        return
    columns = (words("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=1.0)
        yield lambda measure, share: progress.update(task, description=f"{name}: {measure}", completed=share)
