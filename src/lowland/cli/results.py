"""What a run has come to, as tables show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowland.deep.records import MetricsRow, TrainingSummary
from lowland.runs import Run

Reached = Mapping[str, Any]


def is_training(stored: Run) -> bool:
    """Whether ``lowland train`` made it."""
    return "command" not in stored.config


def chosen_rows(stored: Run) -> dict[str, dict[str, Any]]:
    """The last row, and those that validation chose if the run is finished; none of other commands' runs."""
    if not is_training(stored):
        return {}
    if stored.is_finished:
        chosen: dict[str, dict[str, Any]] = stored.read("summary.json", TrainingSummary)
        return chosen
    rows = stored.rows(MetricsRow)
    return {"last": rows[-1]} if rows else {}


def status_of(stored: Run) -> str:
    """How far it is."""
    if stored.is_finished:
        return "finished"
    if not is_training(stored):
        return "unfinished"
    rows = stored.rows(MetricsRow)
    return f"epoch {rows[-1]['epoch']:g}" if rows else "not begun"


def reached_by(stored: Run) -> dict[str, float | None]:
    """Error and loss on the test set, at the end and at the epoch that validation chose."""
    chosen = chosen_rows(stored)
    return {
        prefix + name: chosen.get(kind, {}).get(name)
        for prefix, kind in (("", "last"), ("chosen_", "best"))
        for name in ("test_error", "test_loss")
    }


def columns_of(runs: Sequence[Reached], last: str, chosen: str) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of what runs have reached: errors in per cent, or losses where targets are numbers.

    Args:
        runs: :func:`reached_by` of each.
        last: The head of what is reached at the end; ``{}`` in it is the unit, if it is that of all.
        chosen: The head of what is reached at the epoch that validation chose.
    """
    of_numbers = {run["test_error"] is None and run["test_loss"] is not None for run in runs}
    unit = "" if len(of_numbers) > 1 else " loss" if of_numbers == {True} else " %"
    sign = "%" if len(of_numbers) > 1 else ""
    cells = [[_reached(run, prefix, sign) for prefix in ("", "chosen_")] for run in runs]
    return [last.format(unit), chosen.format(unit)], cells


def _reached(run: Reached, prefix: str, sign: str) -> str:
    error, loss = run[f"{prefix}test_error"], run[f"{prefix}test_loss"]
    if error is None and loss is not None:
        return f"{loss:.4g}"
    return per_cent(error) + (sign if error is not None else "")


def per_cent(error: float | None) -> str:
    """A share, without the sign; a dash if it was not measured."""
    return "-" if error is None else f"{100 * error:.2f}"
