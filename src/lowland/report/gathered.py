"""What the report is made of: figures and runs found in directories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowland.deep import TrainConfig
from lowland.deep.records import MeasureRow, MetricsRow, TrainingSummary
from lowland.errors import InputError
from lowland.figures.paper import FIGURES
from lowland.figures.paper.records import FigureRecord
from lowland.report.pictures import picture
from lowland.runs import Run, as_rows, read_json, read_lines, read_table

Row = dict[str, Any]
_DEPTH = 4
"""As deep as the runs of a sweep lie: runs, runs/sweeps, runs/sweeps/runs, runs/sweeps/runs/NAME."""


@dataclass(frozen=True)
class FigureFiles:
    """A figure that ``lowland figure`` or ``lowland sweep`` wrote.

    Attributes:
        path: The directory of its files.
        about: Its ``figure.json``.
        svg: The picture.
        rows: The data that were drawn; what a row lacks is ``None``.
    """

    path: Path
    about: Mapping[str, Any]
    svg: bytes
    rows: list[Row]


@dataclass(frozen=True)
class OwnRun:
    """A training run that belongs to no figure of the paper.

    Attributes:
        name: What it is called.
        config: What was run.
        rows: Its ``metrics.jsonl``; empty if only the end is known, from the files of a sweep.
        last: Its last row.
        chosen: The row that validation chose; empty if only the end is known.
        measures: Its ``sharpness.jsonl``.
    """

    name: str
    config: TrainConfig
    rows: list[Row]
    last: Mapping[str, Any]
    chosen: Mapping[str, Any]
    measures: list[Row]


@dataclass(frozen=True)
class Gathered:
    """What was found.

    Attributes:
        figures: Figures of the paper, in the order of its argument.
        sweeps: Pictures of sweeps.
        runs: Own runs.
        unfinished: How many runs are left out because they have not come to their end.
    """

    figures: list[FigureFiles]
    sweeps: list[FigureFiles]
    runs: list[OwnRun]
    unfinished: int = 0


def gathered(directories: Sequence[Path]) -> Gathered:
    """Figures and runs in directories, up to four levels deep; of copies of a figure only the first.

    Runs that a figure of the paper was made of are part of it, wherever they are.

    Args:
        directories: Where to look.

    Returns:
        The figures, the sweeps, and the runs that have come to their end.

    Raises:
        InputError: If a directory is none, or there is nothing in them.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.deep import Control, Place, TrainConfig, launch
        >>> from lowland.report import gathered
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=1, batch_size=300)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = launch(config, Path(folder) / "erm", Place(device="cpu"), Control())
        ...     found = gathered([Path(folder)])
        >>> [(run.name, run.config.dataset, run.config.sam_rho) for run in found.runs]
        [('erm', 'gaussians_binary', 0.0)]
    """
    figures: list[FigureFiles] = []
    runs: list[Run] = []
    for path in _below(directories):
        if (path / "figure.json").is_file():
            figure = _figure(path)
            if not any((figure.about, figure.rows) == (other.about, other.rows) for other in figures):
                figures.append(figure)
        elif (path / "config.json").is_file() and "command" not in Run(path).config:
            runs.append(Run(path))
    if not figures and not any(run.is_finished for run in runs):
        looked = ", ".join(map(str, directories))
        raise InputError(f"there must be a figure or a finished run to report, got none in {looked}.")
    sweeps = [figure for figure in figures if not is_of_paper(figure)]
    of_paper = [figure for figure in figures if is_of_paper(figure)]
    place = {name: i for i, name in enumerate(FIGURES)}
    of_paper.sort(key=lambda f: (place.get(f.about["name"], len(place)), f.about["name"], f.about["scale"]))
    theirs = {run["name"] for figure in of_paper for run in figure.about["runs"]}
    not_theirs = [run for run in runs if run.path.name not in theirs]
    own = {run.path: _own_run(run) for run in not_theirs if run.is_finished}
    known = {path.name for path in own} | theirs
    ends = {run.name: run for sweep in sweeps for run in _ends(sweep) if run.name not in known}
    return Gathered(of_paper, sweeps, [*_told_apart(own), *ends.values()], len(not_theirs) - len(own))


def is_of_paper(figure: FigureFiles) -> bool:
    """Whether it is a figure of the paper: a sweep has no scale."""
    return bool(figure.about["scale"])


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
        svg = picture(path, about, rows)
    except OSError as error:
        raise InputError(f"{path} must hold what lowland figure wrote: {error}.") from None
    return FigureFiles(path, about, svg, rows)


def _own_run(run: Run) -> OwnRun:
    return OwnRun(
        run.path.name,
        TrainConfig.from_dict(run.config),
        run.rows(MetricsRow),
        run.last_row(MetricsRow),
        run.read("summary.json", TrainingSummary)["best"],
        read_lines(run.path / "sharpness.jsonl", MeasureRow),
    )


def _ends(sweep: FigureFiles) -> list[OwnRun]:
    """The runs of a sweep as its own files have them, which go without the runs' directories too."""
    return [
        OwnRun(
            run["name"],
            TrainConfig.from_dict(run["config"]),
            rows=[],
            last=run["numbers"] | {"seconds": run["seconds"]},
            chosen={},
            measures=[],
        )
        for run in sweep.about["runs"]
        if "numbers" in run
    ]


def _told_apart(runs: Mapping[Path, OwnRun]) -> list[OwnRun]:
    """Runs of the same name are called by their paths."""
    names = Counter(path.name for path in runs)
    return [run if names[path.name] == 1 else replace(run, name=str(path)) for path, run in runs.items()]
