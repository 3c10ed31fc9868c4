"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowland.report.charts import board_of_figure, board_of_runs
from lowland.report.differing import have_seeds, in_common
from lowland.report.findings import VERDICTS, counts, effects, highlights
from lowland.report.gathered import FigureFiles, Gathered, OwnRun
from lowland.report.pictures import data_url
from lowland.report.tables import (
    measures_of_figures,
    number,
    rows_of_kinds,
    rows_of_measures,
    rows_of_runs,
    runs_of_figures,
)
from lowland.report.titles import named, title

SCRIPTS = ("tables.js", "axes.js", "board.js", "panel.js", "whole.js")
"""In the order in which they stand in the page, in one scope."""


def page(found: Gathered) -> str:
    """The report as HTML: self-contained, for any screen, for print and for screen readers.

    Args:
        found: What it is made of.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.deep import Control, Place, TrainConfig, launch
        >>> from lowland.report import gathered, page
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=1, batch_size=300)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = launch(config, Path(folder) / "erm", Place(device="cpu"), Control())
        ...     html = page(gathered([Path(folder)]))
        >>> html.startswith("<!doctype html>"), "gaussians_binary" in html
        (True, True)
    """
    environment = Environment(
        loader=PackageLoader("lowland.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "picture": _picture}
    together = [*found.figures, *found.sweeps]
    shown = [_figure(one, *name) for one, name in zip(together, named(together), strict=True)]
    figures, sweeps = shown[: len(found.figures)], shown[len(found.figures) :]
    board = board_of_runs(found.runs)
    boards = {"runs": board} | {one["id"]: one["board"] for one in shown if one["board"]}
    return environment.get_template("page.html.j2").render(
        title=title(found),
        style=_own("page.css"),
        script=Markup('"use strict";\n(() => {\n') + Markup("\n").join(map(_own, SCRIPTS)) + Markup("})();"),
        boards=Markup(_json({name: one for name, one in boards.items() if one})),
        verdicts=VERDICTS,
        figures=figures,
        claims=[(one, claim) for one in figures for claim in one["claims"]],
        summary=_summary(found.figures) if found.figures else None,
        figure_runs=runs_of_figures(found.figures),
        figure_measures=measures_of_figures(found.figures),
        runs=rows_of_runs(found.runs),
        has_curves=board is not None,
        in_common=in_common(found.runs) if found.runs else "",
        kinds=rows_of_kinds(found.runs) if have_seeds(found.runs) else [],
        evaluated_in_part=any(not row["full"] for run in found.runs for row in run.rows),
        best=_best(found.runs),
        equals=_equals(found.runs),
        measures=rows_of_measures(found.runs),
        sweeps=sweeps,
        unfinished=found.unfinished,
    )


def _picture(svg: bytes) -> Markup:
    return Markup(data_url(svg))


def _own(name: str) -> Markup:
    """A file of this package."""
    return Markup(importlib.resources.files("lowland.report").joinpath(name).read_text(encoding="utf-8"))


def _summary(figures: Sequence[FigureFiles]) -> dict[str, Any]:
    """What the page opens with where there are figures of the paper."""
    networks = [
        row["network"] for f in figures for row in f.rows if row.get("network") and not row["published"]
    ]
    found = counts(figures)
    return {
        "counts": found,
        "claims": sum(found.values()),
        "effects": effects(figures),
        "highlights": highlights(figures),
        "scales": sorted({figure.about["scale"] for figure in figures}),
        "networks": list(dict.fromkeys(networks)),
        "has_seeds": any(claim["seeds"] > 1 for figure in figures for claim in figure.about["claims"]),
    }


def _best(runs: Sequence[OwnRun]) -> OwnRun | None:
    """The own run with the lowest validation error, where several have one and it is known of all."""
    if not all(run.chosen for run in runs):
        return None
    known = [run for run in runs if run.chosen.get("validation_error") is not None]
    return min(known, key=lambda run: run.chosen["validation_error"]) if len(known) > 1 else None


def _equals(runs: Sequence[OwnRun]) -> int:
    """How many others have a validation error as low as the best run's."""
    best = _best(runs)
    if best is None:
        return 0
    lowest = best.chosen["validation_error"]
    return len([run for run in runs if run.chosen.get("validation_error") == lowest]) - 1


def _figure(figure: FigureFiles, identity: str, label: str) -> dict[str, Any]:
    """What the page shows of a figure."""
    about = figure.about
    return {
        "id": identity,
        "label": label,
        "about": about,
        "svg": figure.svg,
        "claims": about["claims"],
        "board": board_of_figure(figure) if about["scale"] else None,
        "caption": _caption(figure),
        "configs": [
            {"run": run["name"]} | {k: _plain(v) for k, v in run["config"].items()} for run in about["runs"]
        ],
    }


def _caption(figure: FigureFiles) -> str:
    """How many runs the picture is of, and how many seeds."""
    runs = len(figure.about["runs"])
    seeds = {row["seed"] for row in figure.rows if row.get("seed") is not None}
    made = f"{runs} run" + "s" * (runs != 1)
    return made + (f", {len(seeds)} seeds." if len(seeds) > 1 else ".")


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else number(value)


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
