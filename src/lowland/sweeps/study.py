"""What a sweep found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np

from lowland.deep import TrainConfig
from lowland.deep.records import MetricsRow, TrainingSummary, chosen_by
from lowland.errors import InputError, one_of
from lowland.runs import Run, config_hash, read_json, write_json
from lowland.sweeps.grid import Grid
from lowland.sweeps.task import Store
from lowland.sweeps.training import Training

At = Literal["last", "best", "swa_best"]
"""After the last epoch, at the epoch that validation chose, or of averaged weights that it chose."""
METRICS = tuple(sorted(MetricsRow.__annotations__.keys() - {"epoch", "full", "step", "lr", "rho"}))
"""What runs can be compared by, as their rows call it."""
FILE = "sweep.json"


class SweepRecord(TypedDict):
    """``sweep.json``."""

    metric: str | None
    at: At
    runs: list[str]
    configs: list[dict[str, Any]]


@dataclass(frozen=True)
class Point:
    """Runs that differ in nothing but the seed.

    Attributes:
        options: The swept options.
        values: The metric of each seed that is there.
        validation: What it is chosen by: its validation error, or loss.
        chosen_by: The name of that.
        is_chosen: Whether its radius is the best of its kind by validation.
        rivals: How many radii its kind has, beside this one.
    """

    options: Mapping[str, Any]
    values: tuple[float, ...]
    validation: tuple[float, ...]
    chosen_by: str = "validation_error"
    is_chosen: bool = False
    rivals: int = 0


@dataclass(frozen=True)
class Study:
    """A sweep, finished or not: its runs, which sweeps share, and a directory of its own beside them.

    Attributes:
        grid: What is swept.
        names: The names of its runs.
        path: The directory of its own.
    """

    grid: Grid
    names: tuple[str, ...]
    path: Path

    @classmethod
    def of(cls, grid: Grid, out: Path) -> Study:
        """The sweep of ``grid`` in ``out``: in a directory whose name ends in the hash of its runs' names."""
        names = tuple(Training(config).name for config in grid.configs)
        return cls(grid, names, out / f"sweep-{config_hash({'runs': sorted(names)})}")

    @classmethod
    def kept(cls, path: Path) -> tuple[Study, SweepRecord]:
        """The sweep whose directory is ``path``, and what was to be shown of it.

        Raises:
            InputError: If it is none.
        """
        if not (path / FILE).is_file():
            raise InputError(f"a directory of lowland sweep is needed, but {path} has no {FILE}.")
        record: SweepRecord = read_json(path / FILE, SweepRecord)
        configs = tuple(TrainConfig.from_dict(config) for config in record["configs"])
        if len(configs) != len(record["runs"]) or not configs:
            raise InputError(
                f"{path / FILE} must have a config for each run, got {len(configs)} of {len(record['runs'])}."
            )
        return cls(Grid(configs, {}), tuple(record["runs"]), path.absolute()), record

    @property
    def store(self) -> Store:
        """The runs."""
        return Store(self.path.parent / "runs")

    @property
    def tasks(self) -> list[Training]:
        """The runs as tasks."""
        return [Training(config) for config in self.grid.configs]

    def usual_metric(self, at: At) -> str:
        """The test error, or the test loss of runs that have no errors."""
        for run in (Run(self.store.path / name) for name in self.names):
            if run.is_finished:
                summary = run.read("summary.json", TrainingSummary)[at]
                return chosen_by(summary).replace("validation", "test")
        return "test_error"

    def keep(self, metric: str | None, at: At) -> None:
        """Writes what is swept, and what is to be shown."""
        self.path.mkdir(parents=True, exist_ok=True)
        configs = [config.to_dict() for config in self.grid.configs]
        record: SweepRecord = {"metric": metric, "at": at, "runs": list(self.names), "configs": configs}
        write_json(self.path / FILE, record)

    def rows(self, metric: str, at: At) -> list[dict[str, Any]]:
        """A row per finished run: the swept options, the seed, the metric, and what it is chosen by.

        Raises:
            InputError: If runs have no such metric.
        """
        one_of("at", at, get_args(At))
        one_of("metric", metric, METRICS)
        rows = []
        for name, config in zip(self.names, self.grid.configs, strict=True):
            run = Run(self.store.path / name)
            if run.is_finished:
                summary = run.read("summary.json", TrainingSummary)[at]
                one_of(f"metric of {name}", metric, [key for key in METRICS if key in summary])
                swept = {option: getattr(config, option) for option in self.grid.swept}
                by = chosen_by(summary)
                values = {"value": summary[metric], by: summary[by]}
                rows.append({**swept, "seed": config.seed, **values, "run": name})
        return rows


def points(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> list[Point]:
    """The rows joined over seeds; of each kind of run the radius of the lowest validation error is chosen."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str([row[name] for name in swept]), []).append(row)
    kinds: dict[str, list[Point]] = {}
    for own in groups.values():
        point = _point(own, swept)
        kinds.setdefault(_kind(point), []).append(point)
    found = []
    for kind in kinds.values():
        best = min(kind, key=lambda point: _or_infinite(mean_and_deviation(point.validation)[0]))
        found += [replace(point, is_chosen=point is best, rivals=len(kind) - 1) for point in kind]
    return found


def _or_infinite(error: float) -> float:
    """A validation error that is not a number is worse than any."""
    return math.inf if math.isnan(error) else error


def _point(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> Point:
    def numbers(name: str) -> tuple[float, ...]:
        return tuple(float("nan") if row[name] is None else float(row[name]) for row in rows)

    options, by = {name: rows[0][name] for name in swept}, chosen_by(rows[0])
    return Point(options, numbers("value"), numbers(by), by)


def _kind(point: Point) -> str:
    """What is the same for all radii."""
    return str({name: value for name, value in point.options.items() if name not in RADII})


RADII = ("sam_rho", "sam_lr_mult")
"""Options that are a radius."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of a sample where there are several; NaN if a run diverged."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def text_of(value: Any) -> str:
    """A value of an option, as tables and pictures show it."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
