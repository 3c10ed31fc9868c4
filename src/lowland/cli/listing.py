"""``lowland runs list``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lowland.cli.arguments import directory, parse
from lowland.cli.output import Output
from lowland.cli.results import chosen_rows, columns_of, is_training, reached_by, status_of
from lowland.cli.sources import sources_and_options
from lowland.deep import TrainConfig
from lowland.errors import InputError, in_one_line
from lowland.runs import Run

_USAGE = "lowland runs list [DIR ...]"
_KEYS = {
    "date": ("written",),
    "rho": ("rho", "rho_per_lr"),
    "test": ("test_error", "test_loss"),
    "chosen": ("chosen_test_error", "chosen_test_loss"),
}
"""What a column is sorted by, where that is not its name."""
_UNKNOWN = dict.fromkeys(("data", "model", "method", "rho", "rho_per_lr", "m", "epochs", "epoch", "seed"))


@dataclass(frozen=True)
class ListCommand:
    """List the runs below each DIR, by default below runs.

    The date is that of the last evaluation: when metrics.jsonl was written. Errors are those of the test set,
    at the end and at the epoch that validation chose. A run of another command has its name for a model.

    Example:
        lowland runs list runs --sort test

    Attributes:
        sort: A column to sort by; what has no value there comes last.
        json: Print one JSON array, an object for each run, with times, shares and whole paths.
    """

    sort: Literal["run", "date", "data", "model", "rho", "m", "epochs", "status", "test", "chosen"] = "date"
    json: bool = False


def list_runs(words: Sequence[str]) -> None:
    """Prints the runs below the directories among ``words``."""
    given, options = sources_and_options(words, _USAGE, required=False)
    command, console = parse(ListCommand, options, prog=_USAGE), Output()
    roots = directory(given) or [Path("runs")]
    found, unreadable = _read(roots)
    found.sort(
        key=lambda row: [_order(row[key]) for key in (*_KEYS.get(command.sort, (command.sort,)), "written")]
    )
    if command.json:
        print(json.dumps(found, indent=1, allow_nan=False))
        for reason in unreadable.values():
            print(f"lowland: {in_one_line(reason)}", file=sys.stderr)
        return
    if found or unreadable:
        _print(found, unreadable, console)
    else:
        console.say(f"no runs below {', '.join(map(str, roots))}")


def _read(roots: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each run; and of those that cannot be read, why not."""
    rows, unreadable = [], {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"a directory of runs is needed, but there is no {root}.")
    paths = [path.parent for root in roots for path in sorted(root.glob("**/config.json"))]
    for path in dict.fromkeys(paths):
        try:
            rows.append(described(path))
        except InputError as error:
            about = "" if str(path) in str(error) else f"{path}: "
            unreadable[str(path)] = f"{about}{error}"
        except OSError as error:
            unreadable[str(path)] = f"{path} must be readable: {error.strerror or error}."
    return rows, unreadable


def described(path: Path) -> dict[str, Any]:
    """What a run is and has reached, as plain JSON values; ``None`` for what is not known or not there.

    Raises:
        InputError: If one of its files is not what it must be.
    """
    stored = Run.open(path)
    written = stored.metrics_path if stored.metrics_path.exists() else path / "config.json"
    row = {"run": str(path), "command": stored.config.get("command", "train"), "status": status_of(stored)}
    row |= {"begun": _time(path / "config.json"), "written": _time(written)}
    asked = _asked(TrainConfig.from_dict(stored.config)) if is_training(stored) else {}
    last = chosen_rows(stored).get("last", {})
    return {**row, **_UNKNOWN, **asked, "epoch": last.get("epoch"), **reached_by(stored)}


def _asked(config: TrainConfig) -> dict[str, Any]:
    unnormalized = "unnormalized " if config.sam_no_grad_norm else ""
    return {
        "data": config.data_name,
        "model": config.model,
        "method": f"{unnormalized}SAM" if config.is_sam else "ERM",
        "rho": config.sam_rho if config.sam_lr_mult == 0 else None,
        "rho_per_lr": config.sam_lr_mult or None,
        "m": config.group_size if config.is_sam else None,
        "epochs": config.epochs,
        "seed": config.seed,
    }


def _time(path: Path) -> str:
    """When a file was written, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _order(value: Any) -> tuple[bool, Any]:
    return value is None, 0 if value is None else value


def _print(rows: Sequence[dict[str, Any]], unreadable: Mapping[str, str], console: Output) -> None:
    results, cells = columns_of(rows, "test{}", "chosen{}")
    heads = ["run", "date", "data", "model", "ρ", "m", "epochs", "status", *results]
    lines = [[*_cells(row), *reached] for row, reached in zip(rows, cells, strict=True)]
    lines += [[path, *["-"] * 6, "unreadable", *["-" for _ in results]] for path in unreadable]
    console.table(heads, lines, named=True)
    for reason in unreadable.values():
        console.say(f"unreadable: {in_one_line(reason)}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    radius = "ERM" if row["method"] == "ERM" else _text(row["rho"])
    if row["rho_per_lr"] is not None:
        radius = f"{row['rho_per_lr']:g} lr"
    date = str(datetime.fromisoformat(row["written"]).astimezone().date())
    model = _text(row["model"]) if row["command"] == "train" else f"({row['command']})"
    named = [_text(row[name]) for name in ("m", "epochs", "status")]
    return [row["run"], date, _text(row["data"]), model, radius, *named]


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
