"""``lowland runs list|show|compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lowland.cli.arguments import directory
from lowland.cli.progress import loss_text
from lowland.cli.sweeps import print_wide
from lowland.deep import TrainConfig
from lowland.deep.records import MetricsRow, TrainingSummary
from lowland.errors import InputError, one_of
from lowland.figures.curves import plot_overlay
from lowland.figures.style import save
from lowland.runs import Run

_USAGE = """usage: lowland runs list [DIR ...]      the runs below each DIR, by default below runs/
       lowland runs show DIR ...        config and results
       lowland runs compare DIR ...     what differs, results side by side, one picture"""


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    if not argv or {"-h", "--help"} & set(argv):
        print(_USAGE)
        return 0 if argv else 2
    one_of("runs command", argv[0], _COMMANDS)
    _COMMANDS[argv[0]](directory(argv[1:]), Console())
    return 0


def _list(directories: list[Path], console: Console) -> None:
    for root in directories or [Path("runs")]:
        if not root.is_dir():
            raise InputError(f"a directory of runs is needed, but there is no {root}.")
        found = sorted(path.parent for path in root.glob("**/config.json"))
        table = _results_table("run")
        for path in found:
            table.add_row(str(path.relative_to(root)), *_results(Run.open(path)))
        console.print(table if found else f"no runs below {root}", highlight=False)


def _show(directories: list[Path], console: Console) -> None:
    for path in _required(directories, 1):
        stored = Run.open(path)
        defaults = TrainConfig().to_dict()
        console.print(f"[bold]{path}[/bold]  {_status(stored)}", highlight=False, soft_wrap=True)
        if not _is_training(stored):
            _show_small_runs(stored, console)
            continue
        for name, value in stored.config.items():
            if value != defaults.get(name):
                console.print(f"  {name} = {value}", highlight=False)
        table = Table("evaluation", "epoch", "train loss", "train error", "validation", "test", box=None)
        for name, row in _chosen_rows(stored).items():
            table.add_row(name, f"{row['epoch']:g}", loss_text(row), *_errors(row, _SHOWN))
        console.print(table)


def _show_small_runs(stored: Run, console: Console) -> None:
    """The config and the rows of a directory that another command than ``train`` made."""
    for name, value in stored.config.items():
        console.print(f"  {name} = {value}", highlight=False)
    rows = stored.rows()
    table = Table(*(rows[0] if rows else ()), box=None)
    for row in rows:
        table.add_row(*(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()))
    print_wide(table, console)


def _compare(directories: list[Path], console: Console) -> None:
    runs = {path: Run.open(path) for path in _required(directories, 2)}
    for path, stored in runs.items():
        if not _is_training(stored):
            raise InputError(
                f"runs of lowland train can be compared, but {path} was made by another command."
            )
    configs = {path: stored.config for path, stored in runs.items()}
    names = [n for n in next(iter(configs.values())) if len({str(c.get(n)) for c in configs.values()}) > 1]
    table = _results_table("run", *names)
    labels: dict[Path, str] = {}
    for path, stored in runs.items():
        values = [str(configs[path].get(n)) for n in names]
        labels[path] = ", ".join(f"{n} {v}" for n, v in zip(names, values, strict=True)) or path.name
        table.add_row(path.name, *values, *_results(stored))
    console.print(table)
    if len(set(labels.values())) < len(labels):
        labels = {path: f"{path.name}: {label}" for path, label in labels.items()}
    picture = next(iter(runs)) / "compare.png"
    save(plot_overlay({labels[path]: stored.rows(MetricsRow) for path, stored in runs.items()}), picture)
    console.print(f"picture: {picture}", highlight=False, soft_wrap=True)


_COMMANDS = {"list": _list, "show": _show, "compare": _compare}
_SHOWN = ("train_error", "validation_error", "test_error")


def _required(directories: list[Path], count: int) -> list[Path]:
    if len(directories) < count:
        raise InputError(f"at least {count} run directories are needed here, got {len(directories)}.")
    return directories


def _results_table(*columns: str) -> Table:
    return Table(*columns, "status", "test %, last", "test %, chosen on validation", box=None)


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
