"""``lowland runs list|show|compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.cli.arguments import directory, parse
from lowland.cli.listing import list_runs
from lowland.cli.output import Output
from lowland.cli.progress import loss_text
from lowland.cli.results import chosen_rows, columns_of, is_training, per_cent, reached_by, status_of
from lowland.cli.sources import of_several, sources_and_options
from lowland.deep import TrainConfig
from lowland.deep.records import MetricsRow
from lowland.errors import InputError, one_of
from lowland.figures.curves import plot_overlay
from lowland.figures.style import save
from lowland.runs import Run

_USAGE = """usage: lowland runs list [DIR ...]     the runs below each DIR, by default runs/
       lowland runs show DIR ...       config and results
       lowland runs compare DIR ...    what differs, results side by side, and
                                       a picture

lowland runs list --help and lowland runs compare --help list their options."""


@dataclass(frozen=True)
class _CompareCommand:
    """Compare training runs: what differs, results side by side, and a picture.

    Example:
        lowland runs compare runs/erm runs/sam --out picture

    Attributes:
        out: Directory of the picture; by default runs/compare-... with a name made from the runs.
    """

    out: Path | None = None


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    if not argv or argv[0] in {"-h", "--help"} or (argv[0] == "show" and {"-h", "--help"} & set(argv)):
        print(_USAGE)
        return 0 if argv else 2
    one_of("runs command", argv[0], _COMMANDS)
    _COMMANDS[argv[0]](list(argv[1:]), Output())
    return 0


def _list(words: list[str], _: Output) -> None:
    list_runs(words)


def _show(words: list[str], console: Output) -> None:
    for path in _required(directory(words), 1):
        stored = Run.open(path)
        defaults = TrainConfig().to_dict()
        command = "" if is_training(stored) else f" ({stored.config['command']})"
        console.say(f"{path}  {status_of(stored)}{command}", style="bold")
        if not is_training(stored):
            _show_small_runs(stored, console)
            continue
        for name, value in stored.config.items():
            if value != defaults.get(name):
                console.say(f"  {name} = {value}")
        chosen = chosen_rows(stored)
        if all("test_error" in row for row in chosen.values()):
            heads = ["train loss", "train error", "validation", "test"]
            lines = [[loss_text(r), *(per_cent(r.get(name)) for name in _ERRORS)] for r in chosen.values()]
        else:
            heads = ["train loss", "validation loss", "test loss"]
            lines = [[loss_text(r, name) for name in _LOSSES] for r in chosen.values()]
        about = [[name, f"{row['epoch']:g}"] for name, row in chosen.items()]
        console.table(["evaluation", "epoch", *heads], [a + b for a, b in zip(about, lines, strict=True)])


def _show_small_runs(stored: Run, console: Output) -> None:
    """The config and the rows of a directory that another command than ``train`` made."""
    for name, value in stored.config.items():
        console.say(f"  {name} = {value}")
    rows = stored.rows()
    heads = list(dict.fromkeys(name for row in rows for name in row))
    if heads:
        console.table(heads, [[_shown(row.get(name, "")) for name in heads] for row in rows])


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _compare(words: list[str], console: Output) -> None:
    directories, out = _directories_and_out(words)
    runs = {path: Run.open(path) for path in _required(directories, 2)}
    for path, stored in runs.items():
        if not is_training(stored):
            raise InputError(
                f"runs of lowland train can be compared, but {path} was made by another command."
            )
    configs = {path: stored.config for path, stored in runs.items()}
    names = _differing(list(configs.values()))
    heads, results = columns_of([reached_by(stored) for stored in runs.values()], "test{}, last", _CHOSEN)
    lines = []
    labels: dict[Path, str] = {}
    for (path, stored), cells in zip(runs.items(), results, strict=True):
        values = [str(configs[path].get(n)) for n in names]
        labels[path] = ", ".join(f"{n} {v}" for n, v in zip(names, values, strict=True)) or path.name
        lines.append([path.name, *values, status_of(stored), *cells])
    console.table(["run", *names, "status", *heads], lines, named=True)
    if len(set(labels.values())) < len(labels):
        labels = {path: f"{path.name}: {label}" for path, label in labels.items()}
    picture = (out or of_several("compare", list(runs))) / "compare.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save(plot_overlay({labels[path]: stored.rows(MetricsRow) for path, stored in runs.items()}), picture)
    console.say(f"picture: {picture}")


def _directories_and_out(words: list[str]) -> tuple[list[Path], Path | None]:
    """The runs, and the directory after ``--out``."""
    usage = "lowland runs compare DIR ..."
    runs, options = sources_and_options(words, usage, what="run directories")
    return directory(runs), parse(_CompareCommand, options, prog=usage).out


def _differing(configs: list[dict[str, Any]]) -> list[str]:
    """Options that are not the same in all; one that is left out is ``None``."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if len({str(config.get(name)) for config in configs}) > 1]


_COMMANDS = {"list": _list, "show": _show, "compare": _compare}
_ERRORS = ("train_error", "validation_error", "test_error")
_LOSSES = ("train_loss", "validation_loss", "test_loss")
_CHOSEN = "test{}, chosen on validation"


def _required(directories: list[Path], count: int) -> list[Path]:
    if len(directories) < count:
        raise InputError(f"at least {count} run directories are needed here, got {len(directories)}.")
    return directories
