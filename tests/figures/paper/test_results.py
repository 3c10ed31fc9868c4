"""The results in ``docs/results`` are those of the figures as they are."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lowland.figures.paper import FIGURES
from lowland.runs import as_rows, read_table
from lowland.sweeps import in_levels

RESULTS = Path(__file__).parents[3] / "docs" / "results"
PUBLISHED = [*((name, "quick") for name in FIGURES), ("m-sweep", "small")]


@pytest.mark.parametrize(("name", "scale"), PUBLISHED)
def test_what_is_published_is_what_the_command_would_run(name, scale) -> None:
    about = json.loads((RESULTS / "figures" / f"{name}-{scale}" / "figure.json").read_text(encoding="utf-8"))
    tasks = {task.name for level in in_levels(FIGURES[name].runs(scale)) for task in level}
    assert {run["name"] for run in about["runs"]} == tasks
    assert about["missing"] == {}
    assert (about["title"], about["note"]) == (FIGURES[name].title, FIGURES[name].note)


@pytest.mark.parametrize(("name", "scale"), PUBLISHED)
def test_what_is_published_can_be_drawn_and_judged_from_its_data(name, scale) -> None:
    folder = RESULTS / "figures" / f"{name}-{scale}"
    rows = as_rows(read_table(folder / "data.parquet"))
    about = json.loads((folder / "figure.json").read_text(encoding="utf-8"))
    claims = [asdict(claim) for claim in FIGURES[name].claims(rows)]
    stored = about["claims"]  # some were written before claims had their differences as numbers
    assert [claim | old for claim, old in zip(claims, stored, strict=True)] == claims
    assert all(ax.has_data() for ax in FIGURES[name].plot(rows).axes)


@pytest.mark.parametrize(("name", "scale"), PUBLISHED)
def test_every_figure_is_discussed(name, scale) -> None:
    assert f"figures/{name}-{scale}" in (RESULTS / "README.md").read_text(encoding="utf-8")


def test_nothing_else_is_published() -> None:
    found = {folder.name for folder in (RESULTS / "figures").iterdir()}
    assert found == {f"{name}-{scale}" for name, scale in PUBLISHED}
    files = {file.name for folder in (RESULTS / "figures").iterdir() for file in folder.iterdir()}
    assert files == {"data.parquet", "figure.json"}, "pictures are drawn from data"
