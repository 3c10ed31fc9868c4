"""What a sweep found: rows of finished runs, points over seeds, and the radius that validation chooses."""

import json
import math

import pytest

from lowland.errors import InputError
from lowland.runs import Run
from lowland.runs.atomic import write_json
from lowland.sweeps import Study, grid, mean_and_deviation, points

RADII = (0.1, 0.2, 0.4)


@pytest.fixture
def study(tmp_path):
    """Six runs whose errors are known: test = rho, validation = (rho - .2)**2, and a hundredth per seed."""
    found = Study.of(grid({"sam_rho": RADII, "seed": [0, 1]}), tmp_path)
    for task in found.tasks:
        finish(found, task, task.config.sam_rho, (task.config.sam_rho - 0.2) ** 2)
    return found


def finish(study, task, test, validation):
    run = Run.create(study.store.run(task).path, task.describe(), {})
    row = {
        **{"epoch": 1.0, "full": True, "train_loss": 1.0, "train_error": 0.0},
        **{"test_error": test + 0.01 * task.config.seed, "validation_error": validation},
    }
    run.append(row)
    run.finish({"last": row, "best": {**row, "test_error": 0.5}, "swa_best": row})


def test_rows_are_those_of_the_summaries(study) -> None:
    rows = study.rows("test_error", "last")
    assert [(row["sam_rho"], row["seed"]) for row in rows] == [
        (rho, seed) for rho in RADII for seed in (0, 1)
    ]
    assert [row["value"] for row in rows] == pytest.approx([0.1, 0.11, 0.2, 0.21, 0.4, 0.41])
    assert [row["run"] for row in rows] == list(study.names)
    assert {row["value"] for row in study.rows("test_error", "best")} == {0.5}


def test_points_are_means_over_seeds_and_validation_chooses_the_radius(study) -> None:
    found = points(study.rows("test_error", "last"), study.grid.swept)
    assert [point.options for point in found] == [{"sam_rho": rho} for rho in RADII]
    assert [point.is_chosen for point in found] == [False, True, False]
    mean, deviation = mean_and_deviation(found[1].values)
    assert mean == pytest.approx(0.205)
    assert deviation == pytest.approx(0.01 / math.sqrt(2))
    assert mean_and_deviation([1.0]) == (1.0, None)


def test_a_radius_is_chosen_for_each_kind_and_one_that_diverged_is_not() -> None:
    errors = {(1, 0.1): 0.5, (1, 0.2): None, (16, 0.1): 0.4, (16, 0.2): 0.3}
    rows = [
        {"m": m, "sam_rho": rho, "seed": 0, "value": 1.0, "validation_error": error}
        for (m, rho), error in errors.items()
    ]
    found = points(rows, ["m", "sam_rho"])
    assert [tuple(p.options.values()) for p in found if p.is_chosen] == [(1, 0.1), (16, 0.2)]
    assert {point.rivals for point in found} == {1}


def test_a_seed_that_diverged_makes_a_mean_that_is_none() -> None:
    rows = [
        {"sam_rho": 0.1, "seed": k, "value": v, "validation_error": 0.5} for k, v in enumerate((None, 1.0))
    ]
    (point,) = points(rows, ["sam_rho"])
    assert all(math.isnan(number) for number in mean_and_deviation(point.values))


def test_runs_that_are_not_finished_have_no_row(study) -> None:
    (study.store.path / study.names[0] / "summary.json").unlink()
    assert len(study.rows("test_error", "last")) == 5
    assert [len(p.values) for p in points(study.rows("test_error", "last"), study.grid.swept)] == [1, 2, 2]


def test_a_kept_sweep_is_found_again_also_where_its_folder_was_moved(study, tmp_path) -> None:
    study.keep("test_error", "best")
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    found, record = Study.kept(moved / study.path.name)
    assert (record["metric"], record["at"]) == ("test_error", "best")
    assert found.names == study.names
    rows = found.rows("test_error", "last")
    assert [row["run"] for row in rows] == list(study.names)
    assert [row["validation_error"] for row in rows] == [(rho - 0.2) ** 2 for rho in RADII for _ in (0, 1)]
    moved.rename(tmp_path)


def test_sweeps_share_runs_and_have_directories_of_their_own(tmp_path) -> None:
    a = Study.of(grid({"sam_rho": [0.1, 0.2]}), tmp_path)
    b = Study.of(grid({"sam_rho": [0.1, 0.2, 0.3]}), tmp_path)
    assert a.store == b.store
    assert set(a.names) < set(b.names)
    assert a.path != b.path
    assert Study.of(grid({"sam_rho": [0.2, 0.1]}), tmp_path).path == a.path, "in whatever order"


def test_what_is_no_sweep_or_no_metric_is_refused(study, tmp_path, untyped) -> None:  # noqa: ARG001
    with pytest.raises(InputError, match=r"a directory of lowland sweep is needed, but .* has no sweep.json"):
        Study.kept(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"metric must be one of .*, got 'test_eror'; nearest: test_error"):
        study.rows("test_eror", "last")
    with pytest.raises(InputError, match="at must be one of last, best, swa_best, got 'first'"):
        study.rows("test_error", "first")
    study.keep("test_error", "last")
    record = json.loads((study.path / "sweep.json").read_text())
    write_json(study.path / "sweep.json", {**record, "runs": record["runs"][1:]})
    with pytest.raises(InputError, match="must have a config for each run, got 6 of 5"):
        Study.kept(study.path)


def swept_with_erm(tmp_path, validation):
    """ERM, of which m is left out, and SAM of two m, with the validation error of each."""
    found = Study.of(grid({"sam_rho": [0.0, 0.1, 0.2], "m": [4, 16], "seed": [0, 1]}), tmp_path)
    for task in found.tasks:
        finish(found, task, 0.3, validation[task.config.m, task.config.sam_rho])
    return points(found.rows("test_error", "last"), found.grid.swept)


def test_erm_is_a_rival_of_every_m_although_it_has_none(tmp_path) -> None:
    validation = {(None, 0.0): 0.3, (4, 0.1): 0.2, (4, 0.2): 0.4, (16, 0.1): 0.5, (16, 0.2): 0.4}
    found = swept_with_erm(tmp_path, validation)
    (erm,) = [point for point in found if point.is_erm]
    assert erm.options == {"sam_rho": 0.0, "m": None}
    assert [tuple(p.options.values()) for p in found if p.is_chosen] == [(0.0, None), (0.1, 4)]
    assert {point.rivals for point in found} == {2}
    assert all(point.erm == erm for point in found if point is not erm)
    assert [point.seeds for point in found] == [(0, 1)] * 5


def test_erm_that_is_never_the_best_is_not_chosen(tmp_path) -> None:
    validation = {(None, 0.0): 0.9, (4, 0.1): 0.2, (4, 0.2): 0.4, (16, 0.1): 0.5, (16, 0.2): 0.4}
    found = swept_with_erm(tmp_path, validation)
    assert [tuple(p.options.values()) for p in found if p.is_chosen] == [(0.1, 4), (0.2, 16)]


def test_erm_beside_a_run_has_the_same_other_options(tmp_path) -> None:
    swept = grid({"sam_rho": [0.0, 0.1], "lr_max": [0.1, 0.2], "sam_iters": [1, 2]})
    found = Study.of(swept, tmp_path)
    for task in found.tasks:
        finish(found, task, 0.3, 0.3)
    joined = points(found.rows("test_error", "last"), found.grid.swept)
    pairs = [(p.options["lr_max"], p.erm.options["lr_max"]) for p in joined if p.erm is not None]
    assert len(pairs) == 4
    assert all(rate == of_erm for rate, of_erm in pairs)
    assert sum(point.is_erm for point in joined) == 2
