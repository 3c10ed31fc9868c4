"""What a sweep found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from lowland.deep import TrainConfig
from lowland.deep.records import MetricsRow, TrainingSummary, chosen_by
from lowland.errors import InputError, one_of
from lowland.runs import Run, config_hash, read_json
from lowland.runs.atomic import write_json
from lowland.sweeps.grid import Grid, erm_of
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
class Study:
    """A sweep, finished or not: its runs, which sweeps share, and a directory of its own beside them.

    Attributes:
        grid: What is swept.
        names: The names of its runs.
        path: The directory of its own.

    Example:
        >>> from pathlib import Path
        >>> from lowland.sweeps import Study, grid
        >>> study = Study.of(grid({"sam_rho": [0.0, 0.1], "seed": [0, 1], "model": ["fc"]}), Path("out"))
        >>> study.path.name.startswith("sweep-"), len(study.tasks), study.rows("test_error", "last")
        (True, 4, [])
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
        """The test error, or the test loss of runs that have no errors.

        Args:
            at: After which epoch, or of which weights.
        """
        for run in (Run(self.store.path / name) for name in self.names):
            if run.is_finished:
                summary = run.read("summary.json", TrainingSummary)[at]
                return chosen_by(summary).replace("validation", "test")
        return "test_error"

    def keep(self, metric: str | None, at: At) -> None:
        """Writes what is swept, and what is to be shown.

        Args:
            metric: The metric; ``None`` for the usual one.
            at: After which epoch, or of which weights.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        configs = [config.to_dict() for config in self.grid.configs]
        record: SweepRecord = {"metric": metric, "at": at, "runs": list(self.names), "configs": configs}
        write_json(self.path / FILE, record)

    def rows(self, metric: str, at: At) -> list[dict[str, Any]]:
        """A row per finished run: the swept options, the seed, the metric, and what it is chosen by.

        ``erm`` is the name of the run of ERM with all else the same, which is itself where the radius is 0.

        Args:
            metric: One of ``METRICS``.
            at: After which epoch, or of which weights.

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
                names = {"run": name, "erm": Training(erm_of(config)).name}
                rows.append({**swept, "seed": config.seed, **values, **names})
        return rows


def text_of(value: Any) -> str:
    """A value of an option, as tables and pictures show it."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
