"""Experiments: which runs a config means, and what they leave."""

from pathlib import Path

import numpy as np
import pytest

from lowland.errors import InputError
from lowland.relu import Training
from lowland.relu.experiment import ReluConfig, conduct, planned
from lowland.runs import Run, read_table
from lowland.runs.results import write_results


def test_every_radius_runs_with_every_seed_by_the_originals_protocol() -> None:
    jobs = planned(ReluConfig())
    assert [(seed, training.rho) for seed, training, _, _ in jobs] == [
        (seed, rho) for rho in (0.0, 0.3) for seed in range(5)
    ]
    assert jobs[0][1] == Training.original(0.0)
    assert jobs[-1][1] == Training.original(0.3)
    np.testing.assert_array_equal(jobs[0][3].a, jobs[5][3].a)
    assert not np.array_equal(jobs[0][3].a, jobs[1][3].a)


def test_options_reach_the_training_the_data_and_the_network() -> None:
    config = ReluConfig(
        rho=(0.2,),
        protocol="consistent",
        m=3,
        problem="sine",
        points=15,
        noise=0.1,
        width=7,
        scale=0.5,
        gamma=1e-3,
        steps=50,
        batch=5,
        schedule="constant",
        stop_loss=0.1,
        stop_on="perturbed",
        normalized=False,
        seeds=1,
    )
    ((_, training, data, start),) = planned(config)
    assert training == Training(0.2, 3, 1e-3, "constant", 50, 5, False, 0.1, "perturbed")
    assert data.n == 15
    assert start.a.shape == (7,)
    assert np.abs(start.w).max() == pytest.approx(1.25)


def test_a_student_has_its_own_defaults() -> None:
    config = ReluConfig(problem="teacher-student", d=4, teachers=2, seeds=1)
    _, (_, training, data, start) = planned(config)
    assert (training.gamma, training.batch, training.stop_loss) == (0.1, 1, 0.0)
    assert data.x.shape == (20, 4)
    assert start.w.shape == (4, 100)


def test_outcomes_are_labelled_by_what_climbs_together() -> None:
    few = {"seeds": 1, "steps": 3}
    labels = [o.label for o in conduct(ReluConfig(rho=(0.0, 0.3), **few))]
    assert labels == ["ERM", "n-SAM, ρ = 0.3"]
    assert conduct(ReluConfig(rho=(0.3,), m=2, **few))[0].label == "2-SAM, ρ = 0.3"
    assert conduct(ReluConfig(rho=(0.3,), problem="teacher-student", **few))[0].label == "1-SAM, ρ = 0.3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "cosine"}, "problem must be one of maennel, sine, absolute, step, teacher-student"),
        ({"protocol": "new"}, "protocol must be one of original, consistent, got 'new'"),
        ({"d": 2}, "d must be left out for maennel, got 2."),
        (
            {"problem": "teacher-student", "noise": 0.1},
            "noise must be left out for teacher-student, got 0.1.",
        ),
        ({"schedule": "constant"}, "schedule must be left out for the protocol original, got constant."),
        ({"rho": (0.0,), "m": 2}, "m must be left out where nothing climbs, got 2."),
        ({"rho": ()}, "rho must be at least one number, got none."),
        ({"seeds": 0}, "seeds must be positive, got 0."),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_options_that_nothing_would_read_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        ReluConfig(**options)


def test_results_are_kept_and_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    config = ReluConfig(rho=(0.0, 0.3), steps=400, seeds=2)
    done: list[int] = []
    one = conduct(config, threads=1)
    outcomes = conduct(config, threads=3, on_done=done.append)
    assert sorted(done) == [0, 1, 2, 3]
    for a, b in zip(one, outcomes, strict=True):
        np.testing.assert_array_equal(a.result.network.a, b.result.network.a)
    run = Run.create(tmp_path / "run", config.to_dict(), {})
    write_results(run, outcomes)
    rows = run.rows()
    assert [(row["run"], row["seed"]) for row in rows] == [
        *(("ERM", 0), ("ERM", 1)),
        *(("n-SAM, ρ = 0.3", 0), ("n-SAM, ρ = 0.3", 1)),
    ]
    assert rows[2]["slope_variation"] == outcomes[2].result.network.slope_variation(-1.305, 1.445)
    assert rows[0]["test_loss"] is None
    weights = read_table(run.path / "weights.parquet")
    np.testing.assert_array_equal(weights["w0"][100:200], outcomes[1].result.network.w[0])
    assert set(read_table(run.path / "result.parquet")) == {
        *("run", "seed", "iteration", "loss", "perturbed_loss"),
    }


def test_a_divergence_has_neither_kinks_nor_features() -> None:
    (outcome,) = conduct(ReluConfig(rho=(0.0,), gamma=1.0, steps=50, seeds=1))
    row = outcome.row()
    assert row["diverged"] is True
    assert {"slope_variation", "rank"}.isdisjoint(row)


def test_more_examples_than_a_step_has_cannot_climb_together() -> None:
    with pytest.raises(InputError, match=r"^m must be at most the 1 examples of a step, got 3\.$"):
        planned(ReluConfig(problem="teacher-student", m=3))
