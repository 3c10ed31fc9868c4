"""``lowland report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowland.cli.arguments import parse
from lowland.cli.output import Output
from lowland.cli.sources import sources_and_options
from lowland.errors import InputError
from lowland.report import gathered, page
from lowland.runs.atomic import write_text

_USAGE = "lowland report DIR ..."


@dataclass(frozen=True)
class ReportCommand:
    """Gather figures and runs into one page.

    Example:
        lowland report runs/figures --out page

    Attributes:
        out: Directory of index.html.
    """

    out: Path = Path("runs/report")


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    names, options = sources_and_options(argv, _USAGE, what="directories")
    command, console = parse(ReportCommand, options, prog=_USAGE), Output()
    if command.out.exists() and not command.out.is_dir():
        raise InputError(f"out must be a directory, but {command.out} is a file.")
    found = gathered([Path(name) for name in names])
    text = page(found)
    command.out.mkdir(parents=True, exist_ok=True)
    path = command.out / "index.html"
    write_text(path, text)
    counts = f"{len(found.figures)} figures, {len(found.sweeps)} sweeps, {len(found.runs)} own runs"
    console.say(f"{counts}: {path}")
    return 0
