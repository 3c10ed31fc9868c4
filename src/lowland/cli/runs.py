"""``lowland runs list|show|compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.cli.arguments import directory, parse
from lowland.cli.output import Output
from lowland.cli.progress import loss_text
from lowland.cli.sources import of_several, sources_and_options
from lowland.deep import TrainConfig
from lowland.deep.records import MetricsRow, TrainingSummary
from lowland.errors import InputError, one_of
from lowland.figures.curves import plot_overlay
from lowland.figures.style import save
from lowland.runs import Run

_USAGE = """usage: lowland runs list [DIR ...]     the runs below each DIR, by default runs/
       lowland runs show DIR ...       config and results
       lowland runs compare DIR ... [--out DIR]
                                       what differs, results side by side, and a
                                       picture, by default in a directory of its
                                       own, runs/compare-..."""


@dataclass(frozen=True)
class _CompareCommand:
    """Compare training runs: lowland runs compare DIR ... [--out DIR].

    Attributes:
        out: Directory of the picture; by default runs/ and a name made from the runs.
    """

    out: Path | None = None


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    if not argv or {"-h", "--help"} & set(argv):
        print(_USAGE)
        return 0 if argv else 2
    one_of("runs command", argv[0], _COMMANDS)
    _COMMANDS[argv[0]](list(argv[1:]), Output())
    return 0


def _list(words: list[str], console: Output) -> None:
    directories = directory(words)
    for root in directories or [Path("runs")]:
        if not root.is_dir():
            raise InputError(f"a directory of runs is needed, but there is no {root}.")
        found = sorted(path.parent for path in root.glob("**/config.json"))
        lines = [[str(path.relative_to(root)), *_results(Run.open(path))] for path in found]
        if found:
            console.table(["run", *_RESULTS], lines)
        else:
            console.say(f"no runs below {root}")


def _show(words: list[str], console: Output) -> None:
    for path in _required(directory(words), 1):
        stored = Run.open(path)
        defaults = TrainConfig().to_dict()
        console.say(f"{path}  {_status(stored)}", style="bold")
        if not _is_training(stored):
            _show_small_runs(stored, console)
            continue
        for name, value in stored.config.items():
            if value != defaults.get(name):
                console.say(f"  {name} = {value}")
        heads = ["evaluation", "epoch", "train loss", "train error", "validation", "test"]
        chosen = _chosen_rows(stored).items()
        lines = [[n, f"{r['epoch']:g}", loss_text(r), *_errors(r, _SHOWN)] for n, r in chosen]
        console.table(heads, lines)


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
        if not _is_training(stored):
            raise InputError(
                f"runs of lowland train can be compared, but {path} was made by another command."
            )
    configs = {path: stored.config for path, stored in runs.items()}
    names = [n for n in next(iter(configs.values())) if len({str(c.get(n)) for c in configs.values()}) > 1]
    lines = []
    labels: dict[Path, str] = {}
    for path, stored in runs.items():
        values = [str(configs[path].get(n)) for n in names]
        labels[path] = ", ".join(f"{n} {v}" for n, v in zip(names, values, strict=True)) or path.name
        lines.append([path.name, *values, *_results(stored)])
    console.table(["run", *names, *_RESULTS], lines)
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


_COMMANDS = {"list": _list, "show": _show, "compare": _compare}
_RESULTS = ("status", "test %, last", "test %, chosen on validation")
_SHOWN = ("train_error", "validation_error", "test_error")


def _required(directories: list[Path], count: int) -> list[Path]:
    if len(directories) < count:
        raise InputError(f"at least {count} run directories are needed here, got {len(directories)}.")
    return directories


def _results(stored: Run) -> list[str]:
    chosen = _chosen_rows(stored)
    return [_status(stored), *(_percent(chosen.get(name, {}).get("test_error")) for name in ("last", "best"))]


def _is_training(stored: Run) -> bool:
    return "command" not in stored.config


def _chosen_rows(stored: Run) -> dict[str, dict[str, Any]]:
    if not _is_training(stored):
        return {}
    if stored.is_finished:
        chosen: dict[str, dict[str, Any]] = stored.read("summary.json", TrainingSummary)
        return chosen
    rows = stored.rows(MetricsRow)
    return {"last": rows[-1]} if rows else {}


def _status(stored: Run) -> str:
    if stored.is_finished:
        return "finished" if _is_training(stored) else f"finished ({stored.config['command']})"
    if not _is_training(stored):
        return f"unfinished ({stored.config['command']})"
    rows = stored.rows(MetricsRow)
    return f"epoch {rows[-1]['epoch']:g}" if rows else "not begun"


def _errors(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [_percent(row.get(name)) for name in names]


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.2f}"
