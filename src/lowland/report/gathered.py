"""What the report is made of: figures and runs found in directories."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.deep import TrainConfig
from lowland.deep.records import MeasureRow, MetricsRow
from lowland.errors import InputError
from lowland.figures.paper.networks import method
from lowland.figures.paper.records import FigureRecord
from lowland.runs import Run, as_rows, read_json, read_lines, read_table

Row = dict[str, Any]
_DEPTH = 3


@dataclass(frozen=True)
class FigureFiles:
    """A figure that ``lowland figure`` wrote.

    Attributes:
        path: The directory of its files.
        about: Its ``figure.json``.
        svg: The picture.
        rows: The data that were drawn.
    """

    path: Path
    about: Mapping[str, Any]
    svg: bytes
    rows: list[Row]


@dataclass(frozen=True)
class Gathered:
    """What was found.

    Attributes:
        figures: In the order of the paper's figures, as far as they are such.
        runs: A row per training run, of figures and by itself.
        sharpness: A row per measure of flatness of a network.
    """

    figures: list[FigureFiles]
    runs: list[Row]
    sharpness: list[Row]


def gathered(directories: Sequence[Path], order: Sequence[str] = ()) -> Gathered:
    """Figures and runs in directories, up to three levels deep; of copies of a figure only the first.

    Args:
        directories: Where to look.
        order: Names of figures in the order that they are to have.

    Raises:
        InputError: If a directory is none, or there is nothing in them.
    """
    figures: list[FigureFiles] = []
    runs: dict[str, Row] = {}
    sharpness: list[Row] = []
    for path in _below(directories):
        if (path / "figure.json").is_file():
            figure = _figure(path)
            if not any((figure.about, figure.rows) == (other.about, other.rows) for other in figures):
                figures.append(figure)
        elif (path / "config.json").is_file() and (path / "summary.json").is_file():
            run = Run(path)
            if "command" not in run.config:
                runs[path.name] = _run_row(path.name, run.config, run.last_row(MetricsRow))
                sharpness += [
                    {"network": path.name} | row for row in read_lines(path / "sharpness.jsonl", MeasureRow)
                ]
    if not figures and not runs:
        looked = ", ".join(map(str, directories))
        raise InputError(f"there must be a figure or a finished run to report, got none in {looked}.")
    place = {name: i for i, name in enumerate(order)}
    figures.sort(key=lambda f: (place.get(f.about["name"], len(place)), f.about["name"], f.about["scale"]))
    for figure in figures:
        for run_ in figure.about["runs"]:
            if "numbers" in run_:
                row = _run_row(run_["name"], run_["config"], run_["numbers"] | {"seconds": run_["seconds"]})
                runs.setdefault(run_["name"], row)
        ours = [row for row in figure.rows if not row.get("published")]
        sharpness += [row for row in ours if "sharpness" in row or "factor" in row]
    return Gathered(figures, list(runs.values()), [_measure_row(row) for row in sharpness])


def _below(directories: Sequence[Path]) -> Iterator[Path]:
    """Every directory, each once, down to some depth."""
    seen: set[Path] = set()
    for top in directories:
        if not top.is_dir():
            raise InputError(f"a directory is needed, but there is no directory {top}.")
        level = [top]
        for _ in range(_DEPTH):
            new = [path for path in level if path.resolve() not in seen]
            seen |= {path.resolve() for path in new}
            yield from new
            level = [sub for path in new for sub in sorted(path.iterdir()) if sub.is_dir()]


def _figure(path: Path) -> FigureFiles:
    try:
        about = read_json(path / "figure.json", FigureRecord)
        rows = as_rows(read_table(path / "data.parquet"))
        svg = (path / "figure.svg").read_bytes()
    except OSError as error:
        raise InputError(f"{path} must hold what lowland figure wrote: {error}.") from None
    return FigureFiles(path, about, svg, [{k: v for k, v in row.items() if v is not None} for row in rows])


def _run_row(name: str, stored: Mapping[str, Any], last: Mapping[str, Any]) -> Row:
    """A training run, from its config or from what of it is not the default."""
    config = TrainConfig.from_dict(stored)
    return {
        "run": name,
        "data": config.data_name,
        "wrong labels": config.p_label_noise,
        "model": config.model,
        "method": method(config),
        "ρ": config.sam_rho,
        "epochs": config.epochs,
        "seed": config.seed,
        "test error (%)": _per_cent(last.get("test_error")),
        "validation (%)": _per_cent(last.get("validation_error")),
        "training loss": last.get("train_loss"),
        "seconds": last.get("seconds"),
    }


def _measure_row(row: Mapping[str, Any]) -> Row:
    """A measure of a figure, or one that ``lowland sharpness`` left in a run."""
    trained = row.get("trained_rho", row.get("rho") if "factor" in row else None)
    about = {
        "network": row.get("method", row.get("network")),
        "trained with ρ": trained,
        "seed": row.get("seed"),
    }
    measure = "suboptimality factor" if "factor" in row else row.get("measure", "worst case")
    value = row.get("sharpness", row.get("factor", row.get("value")))
    numbers = {"m": row.get("m"), "ρ": row.get("rho"), "value": value, "standard error": row.get("stderr")}
    return about | {"measure": measure} | numbers | {"test error (%)": row.get("test_error")}


def _per_cent(share: float | None) -> float | None:
    return None if share is None or not math.isfinite(share) else 100.0 * share
