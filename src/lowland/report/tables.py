"""The rows of the page's tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lowland.deep import TrainConfig
from lowland.figures.paper.networks import method
from lowland.report.charts import present
from lowland.report.differing import differing, kinds, option
from lowland.report.gathered import FigureFiles, OwnRun, Row
from lowland.sweeps import mean_and_deviation


def rows_of_runs(runs: Sequence[OwnRun]) -> list[Row]:
    """A row per own run: first what differs between them, then what they came to."""
    names = differing(runs)
    found = []
    for run in runs:
        options = run.config.to_dict()
        differs = {name: option(options.get(name)) for name in names}
        found.append({"run": run.name} | differs | _reached(run.last) | _chosen(run.chosen))
    return _without_empty(found)


def _reached(last: Mapping[str, Any]) -> Row:
    losses = {"validation loss": last.get("validation_loss"), "test loss": last.get("test_loss")}
    return {
        "test error (%)": _per_cent(last.get("test_error")),
        "validation error (%)": _per_cent(last.get("validation_error")),
        "training error (%)": _per_cent(last.get("train_error")),
        **({} if "test_error" in last else losses),
        "training loss": last.get("train_loss"),
        "seconds": last.get("seconds"),
    }


def _chosen(row: Mapping[str, Any]) -> Row:
    """At the epoch that validation chose."""
    test = {"test error there (%)": _per_cent(row.get("test_error"))}
    if "test_error" not in row:
        test = {"test loss there": row.get("test_loss")}
    return {"epoch chosen on validation": row.get("epoch"), **test}


def rows_of_kinds(runs: Sequence[OwnRun]) -> list[Row]:
    """A row per kind of run: means over seeds, with a standard deviation where a kind has several."""
    found = []
    for told, own in kinds(runs).items():
        columns: dict[str, list[float]] = {}
        for run in own:
            for name, value in present(_reached(run.last)).items():
                columns.setdefault(name, []).append(value)
        means = {name: _mean(values) for name, values in columns.items() if len(values) == len(own)}
        found.append({"kind": told, "seeds": len(own)} | means)
    return _without_empty(found)


def _mean(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.4g}" + ("" if deviation is None else f" ± {deviation:.2g}")


def rows_of_measures(runs: Sequence[OwnRun]) -> list[Row]:
    """A row per measure of flatness of an own run."""
    return _without_empty([_measure({"network": run.name} | row) for run in runs for row in run.measures])


def runs_of_figures(figures: Sequence[FigureFiles]) -> list[Row]:
    """A row per training run that figures were made of, each run once."""
    runs = {run["name"]: run for figure in figures for run in figure.about["runs"] if "numbers" in run}
    found = []
    for name, run in runs.items():
        config, last = TrainConfig.from_dict(run["config"]), run["numbers"]
        found.append(
            {
                "run": name,
                "data": config.data_name,
                "wrong labels": config.p_label_noise,
                "model": config.model,
                "method": method(config),
                "ρ": config.sam_rho,
                "epochs": config.epochs,
                "seed": config.seed,
                "test error (%)": _per_cent(last.get("test_error")),
                "validation error (%)": _per_cent(last.get("validation_error")),
                "training loss": last.get("train_loss"),
                "seconds": run["seconds"],
            }
        )
    return _without_empty(found)


def measures_of_figures(figures: Sequence[FigureFiles]) -> list[Row]:
    """A row per measure of flatness that figures were drawn from."""
    rows = [present(row) for figure in figures for row in figure.rows if not row.get("published")]
    return _without_empty([_measure(row) for row in rows if "sharpness" in row or "factor" in row])


def _measure(row: Mapping[str, Any]) -> Row:
    """A measure of a figure, or one that ``lowland sharpness`` left in a run."""
    measure = "suboptimality factor" if "factor" in row else row.get("measure", "worst case")
    value = row.get("sharpness", row.get("factor", row.get("value")))
    trained = row.get("trained_rho", row.get("rho") if "factor" in row and row["method"] != "ERM" else None)
    return {
        "network": row.get("method", row.get("network")),
        "trained with ρ": trained,
        "seed": row.get("seed") if "method" in row else None,
        "measure": measure,
        "m": row.get("m"),
        "ρ": row.get("rho"),
        "value": value,
        "standard error": row.get("stderr"),
        "rise of the error (%)": _per_cent(row.get("error_rise")),
        "test error (%)": row.get("test_error"),
    }


def number(value: object) -> str:
    """As a table shows it: four significant digits, nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _per_cent(share: float | None) -> float | None:
    return None if share is None or not math.isfinite(share) else 100.0 * share


def _without_empty(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same columns, those that none of them fills left out."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    used = [name for name in names if any(row.get(name) not in (None, "") for row in rows)]
    return [{name: row.get(name) for name in used} for row in rows]
