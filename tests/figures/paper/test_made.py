"""Figures made from runs, small ones: at the command line, continued, with their files."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lowland.deep import Place, TrainConfig
from lowland.deep.flatness import FlatnessConfig
from lowland.figures.paper import FIGURES
from lowland.figures.paper.files import drawn, estimated
from lowland.sweeps import Here, Measured, Store, Training, carried_out
from sweeps.counted import Heard

TINY = TrainConfig(model="fc", model_width=9)
FINE = ("fig9", "fig9-interpolation")


def made(out, *names):
    tasks = [task for name in names for task in FIGURES[name].runs("quick")]
    heard = Heard()
    place = Place("cpu", None, 1)
    assert carried_out(tasks, Store(out / "runs"), Here(), place=place, watch=heard) == {}
    return heard


@pytest.mark.usefixtures("tiny_figures")
def test_figures_are_made_from_shared_runs_and_leave_every_file(tmp_path) -> None:
    heard = made(tmp_path, *FINE, "convergence", "suboptimality")
    # 2 seeds: ERM, SAM, four ways on, one line, two networks measured.
    assert len(heard.started) == 2 * (2 + 4 + 1 + 2)
    for name in (*FINE, "convergence", "suboptimality"):
        result = drawn(FIGURES[name], "quick", tmp_path)
        assert result.missing == []
        assert result.claims
        directory = tmp_path / f"{name}-quick"
        assert sorted(path.name for path in directory.iterdir()) == [
            "data.parquet",
            "figure.json",
            "figure.pdf",
            "figure.png",
            "figure.svg",
        ]
        with Image.open(directory / "figure.png") as picture:
            assert picture.width > 400
        about = json.loads((directory / "figure.json").read_text())
        assert about["caption"].startswith(tuple("0123456789"))
        assert about["seconds"] > 0.0
        assert about["missing"] == {}
        assert {run["name"] for run in about["runs"]} <= {path.name for path in (tmp_path / "runs").iterdir()}
        rows = pq.read_table(directory / "data.parquet").to_pylist()
        seeds = {row["seed"] for row in rows if not row["published"]}
        assert seeds == {0, 1}


@pytest.mark.usefixtures("tiny_figures")
def test_fine_tuning_is_counted_on_through_the_switch(tmp_path) -> None:
    made(tmp_path, "fig9")
    rows = FIGURES["fig9"].data(FIGURES["fig9"].runs("quick"), Store(tmp_path / "runs"))
    epochs: dict[str, set[float]] = {}
    for row in rows:
        epochs.setdefault(row["kind"], set()).add(row["epoch"])
    assert (epochs["ERM"], epochs["ERM → SAM"]) == ({0.0, 1.0, 2.0}, {2.0, 3.0})
    at_switch = {row["kind"]: row["test_error"] for row in rows if row["epoch"] == 2.0 and row["seed"] == 1}
    assert at_switch["ERM → SAM"] == at_switch["ERM → ERM"] == at_switch["ERM"]
    assert at_switch["SAM → ERM"] == at_switch["SAM"]


@pytest.mark.usefixtures("tiny_figures")
def test_what_is_missing_is_said_and_the_rest_is_drawn(tmp_path) -> None:
    made(tmp_path, "convergence")
    assert drawn(FIGURES["suboptimality"], "quick", tmp_path) is None
    assert not (tmp_path / "suboptimality-quick").exists()
    lost, *_, left = FIGURES["convergence"].runs("quick")
    shutil.rmtree(Store(tmp_path / "runs").run(lost).path)
    result = drawn(FIGURES["convergence"], "quick", tmp_path, failures={lost.name: "it broke."})
    assert result.missing == [lost.name]
    about = json.loads((tmp_path / "convergence-quick" / "figure.json").read_text())
    assert about["missing"] == {lost.name: "it broke."}
    assert left.name in {run["name"] for run in about["runs"]}
    rows = pq.read_table(tmp_path / "convergence-quick" / "data.parquet").to_pylist()
    assert lost.name not in {row["run"] for row in rows}


@pytest.mark.usefixtures("tiny_figures")
def test_costs_are_told_for_what_is_left_and_each_run_counts_once(tmp_path) -> None:
    figures = [FIGURES["convergence"], FIGURES["suboptimality"]]
    store = Store(tmp_path / "runs")
    first, second = estimated(figures, "quick", store)
    assert (first["tasks"], first["done"], first["shared"]) == (4, 0, 0)
    assert (second["tasks"], second["done"], second["shared"]) == (8, 0, 4)
    made(tmp_path, "convergence")
    first, second = estimated(figures, "quick", store)
    assert (first["done"], first["seconds"]) == (4, 0)
    assert (second["done"], second["shared"]) == (4, 0)
    assert second["seconds"] > 0


@pytest.mark.usefixtures("tiny_figures")
def test_a_measure_belongs_to_its_run_and_its_config() -> None:
    (task, *_) = FIGURES["suboptimality"].runs("quick")
    other = Measured(task.of, FlatnessConfig(rho=(0.3,)))
    assert task.name != other.name
    assert task.name != Measured(Training(TINY), task.config).name
