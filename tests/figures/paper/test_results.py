"""The results in ``docs/results`` are those of the figures as they are."""

import json
from pathlib import Path

import pytest

from lowland.figures.paper import FIGURES
from lowland.figures.tasks import in_levels

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_published_is_what_the_command_would_run(name) -> None:
    about = json.loads((RESULTS / "figures" / f"{name}-quick" / "figure.json").read_text(encoding="utf-8"))
    tasks = {task.name for level in in_levels(FIGURES[name].runs("quick")) for task in level}
    assert {run["name"] for run in about["runs"]} == tasks
    assert about["missing"] == {}
    assert (about["title"], about["note"]) == (FIGURES[name].title, FIGURES[name].note)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_discussed_and_shown(name) -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert f"(figures/{name}-quick/figure.svg)" in text
    assert f'id="{name}-quick"' in (RESULTS / "report" / "index.html").read_text(encoding="utf-8")
