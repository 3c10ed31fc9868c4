"""Experiments: which runs a config means, and what they leave."""

from pathlib import Path

import numpy as np
import pytest

from lowland.diagonal import minimum_l2, sparse_regression
from lowland.diagonal.experiment import DiagonalConfig, conduct, planned
from lowland.errors import InputError
from lowland.runs import Run, read_table
from lowland.runs.results import write_results


def test_every_method_runs_at_every_radius_with_every_seed() -> None:
    config = DiagonalConfig(methods=("gd", "sgd", "n-sam", "m-sam"), rho=(0.1, 0.2), m=3, seeds=2, steps=9)
    jobs = planned(config)
    labels = ["GD", "SGD", "n-SAM, ρ = 0.1", "n-SAM, ρ = 0.2", "3-SAM, ρ = 0.1", "3-SAM, ρ = 0.2"]
    assert [job[:2] for job in jobs] == [(label, seed) for seed in (0, 1) for label in labels]
    np.testing.assert_array_equal(jobs[0][2].X, sparse_regression(seed=0).X)
    np.testing.assert_array_equal(jobs[-1][2].X, sparse_regression(seed=1).X)
    assert jobs[0][3].phases[0].gamma == 5 / 30
    assert jobs[-1][3].seed == 1


def test_runs_that_differ_in_the_step_size_are_told_apart_by_it() -> None:
    words = ("sgd:0.1:10", "sgd:0.3:10", "gd:0.1:10")
    labels = [job[0] for job in planned(DiagonalConfig(phases=words))]
    assert labels == ["SGD, γ = 0.1, 10 steps", "SGD, γ = 0.3, 10 steps", "GD"]
    with pytest.raises(InputError, match=r"runs must differ, got GD, γ = 0.1, 10 steps twice."):
        planned(DiagonalConfig(phases=("gd:0.1:10", "gd:0.1:10")))


def test_options_reach_the_phases_the_plan_and_the_data() -> None:
    config = DiagonalConfig(
        methods=("gd", "1-sam"),
        rho=(0.2,),
        gamma=0.3,
        steps=7,
        alpha=0.05,
        balanced=True,
        rho_convention="original",
        derivative_only=True,
        normalized_step=True,
        weight_decay=0.1,
        balance=0.2,
        thresholds=(0.5, 0.1),
        n=5,
        d=8,
        sparsity=2,
        n_test=4,
        scaling=0.5,
        label_noise=0.1,
        stream="modern",
    )
    (_, _, problem, descent), (_, _, _, plan) = planned(config)
    (phase,) = plan.phases
    assert (phase.method, phase.gamma, phase.steps, phase.rho) == ("1-sam", 0.3, 7, 0.2)
    assert (phase.rho_convention, phase.derivative_only, phase.normalized_step) == ("original", True, True)
    assert (phase.weight_decay, phase.balance, phase.thresholds) == (0.1, 0.2, (0.5, 0.1))
    assert (plan.alpha, plan.balanced) == (0.05, True)
    assert planned(DiagonalConfig(kernel="algebraic"))[0][3].kernel == "algebraic"
    assert (descent.phases[0].rho, descent.phases[0].derivative_only) == (0.0, False)
    assert planned(DiagonalConfig(normalized=True))[-1][3].phases[0].normalized
    wanted = sparse_regression(n=5, d=8, sparsity=2, n_test=4, scaling=0.5, label_noise=0.1, stream="modern")
    np.testing.assert_array_equal(problem.X_test, wanted.X_test)
    np.testing.assert_array_equal(problem.y, wanted.y)


def test_phases_are_read_from_words() -> None:
    words = ("gd:0.0333:200", "gd:0.0333:100+1-sam:0.02:50:10+m-sam:0.1:5:0.3:4")
    (_, _, _, one), (_, _, _, three) = planned(DiagonalConfig(phases=words, rho_convention="original"))
    assert [phase.label for phase in one.phases] == ["GD"]
    assert three.label == "GD → 1-SAM, ρ = 10 [2ρ] → 4-SAM, ρ = 0.3"
    assert [(phase.gamma, phase.steps) for phase in three.phases] == [(0.0333, 100), (0.02, 50), (0.1, 5)]


@pytest.mark.parametrize("word", ["gd", "gd:0.1", "gd:0.1:x", "1-sam:0.1:5:a", "m-sam:0.1:5:0.1:2:3", ""])
def test_a_phase_that_cannot_be_read_is_quoted(word) -> None:
    with pytest.raises(InputError, match="must be"):
        planned(DiagonalConfig(phases=(word,)))


def test_data_come_from_a_file(tmp_path: Path) -> None:
    X, y = np.random.default_rng(0).standard_normal((4, 6)), np.arange(4.0)
    np.savez(tmp_path / "data.npz", X=X, y=y)
    config = DiagonalConfig(methods=("gd",), data=tmp_path / "data.npz", steps=20_000, alpha=5.0, gamma=0.005)
    (outcome,) = conduct(config)
    np.testing.assert_array_equal(outcome.problem.X, X)
    np.testing.assert_allclose(outcome.result.beta, minimum_l2(outcome.problem), atol=0.02)
    assert {"missed", "spurious"}.isdisjoint(outcome.row())
    assert config.to_dict()["data"] == str(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"data.npz must be an .npz file of arrays."):
        planned(DiagonalConfig(data=tmp_path / "data.npz"))


def test_arrays_of_the_wrong_name_or_with_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "names.npz", X=np.ones((2, 2)), targets=np.ones(2))
    with pytest.raises(
        InputError, match=r"must hold X and y, and X_test and y_test or not, got X, targets\."
    ):
        planned(DiagonalConfig(data=tmp_path / "names.npz"))
    np.savez(tmp_path / "objects.npz", X=np.array([[object()]]), y=np.ones(1))
    with pytest.raises(InputError, match=r"objects.npz must be an .npz file of arrays."):
        planned(DiagonalConfig(data=tmp_path / "objects.npz"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"phases": ("gd:0.1:5",), "rho": (0.3,)},
            r"rho must be left out where phases say it, got \(0.3,\).",
        ),
        ({"phases": ("gd:0.1:5",), "steps": 5}, "steps must be left out where phases say it, got 5."),
        ({"data": Path("x.npz"), "n": 5}, "n must be left out where the data are given, got 5."),
        ({"m": 3}, "m must be given for m-sam and only for it, got 3"),
        ({"methods": ("m-sam",)}, "m must be given for m-sam and only for it, got None"),
        ({"seeds": 0}, "seeds must be positive, got 0."),
    ],
)
def test_options_that_nothing_would_read_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        DiagonalConfig(**options)


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(InputError, match="there must be something to run"):
        planned(DiagonalConfig(methods=()))
    with pytest.raises(InputError, match="there must be something to run"):
        planned(DiagonalConfig(methods=("n-sam",), rho=()))


def test_results_are_kept_whole_and_a_divergence_is_null(tmp_path: Path) -> None:
    config = DiagonalConfig(
        methods=("gd", "1-sam"), rho=(0.01, 5.0), gamma=0.5, steps=600, theory=True, seeds=2
    )
    run = Run.create(tmp_path / "run", config.to_dict(), {})
    run.append({"left": "by a killed process"})
    done: list[int] = []
    outcomes = conduct(config, threads=2, on_done=done.append)
    write_results(run, outcomes)
    assert sorted(done) == list(range(6))
    rows = run.rows()
    assert [row["run"] for row in rows] == 2 * ["GD", "1-SAM, ρ = 0.01", "1-SAM, ρ = 5"]
    assert [row["diverged"] for row in rows] == 2 * [False, False, True]
    assert rows[2]["test_loss"] is None
    assert "missed" not in rows[2]
    assert {"area", "shrunk", "predicted", "hidden", "distance", "kkt", "missed", "l1_norm"} <= rows[0].keys()
    assert run.summary == {"runs": rows}
    curves, weights = read_table(run.path / "result.parquet"), read_table(run.path / "weights.parquet")
    length = len(outcomes[0].result.iterations)
    assert curves["run"][length - 1 : length + 1] == ["GD", "1-SAM, ρ = 0.01"]
    assert curves["test_loss"][length - 1] == outcomes[0].result.test_loss[-1]
    assert np.isnan(curves["train_loss"][3 * length - 1])
    assert curves["seed"][-1] == 1
    np.testing.assert_array_equal(weights["minimizer"][:30], outcomes[0].theory.minimizer)
    np.testing.assert_array_equal(weights["u"][-30:], outcomes[-1].result.u)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("gd", "sgd"), "rho": (0.2,)}, "rho must be left out where nothing climbs"),
        ({"phases": ("gd:0.1:9",), "normalized": True}, "normalized must be left out where nothing climbs"),
        ({"methods": ("n-sam",), "rho": (0.0,), "normalized": True}, "normalized must be left out where"),
        ({"methods": ("gd",), "derivative_only": True}, "derivative_only must be left out where nothing"),
        ({"methods": ("n-sam",), "rho_convention": "original"}, "rho_convention must be left out where no"),
        ({"normalized": True, "rho_convention": "original"}, "rho_convention must be left out where no"),
        ({"phases": ("m-sam:0.1:9:0.1:2",), "rho_convention": "original"}, "rho_convention must be left out"),
        ({"weight_decay": 0.1, "kernel": "algebraic"}, "kernel must be left out without gd, n-sam or 1-sam"),
    ],
)
def test_what_no_run_reads_is_refused(options, message) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        planned(DiagonalConfig(**options))


@pytest.mark.parametrize("options", [{"phases": ("m-sam:0.1:9:0.1:1",)}, {"methods": ("1-sam",)}])
def test_the_convention_is_read_where_an_example_climbs_alone(options) -> None:
    twice = planned(DiagonalConfig(rho_convention="original", **options))
    assert all(job[3].phases[0].reach(5) == 2.0 * job[3].phases[0].rho for job in twice)


def test_seeds_of_given_data_need_something_that_is_drawn(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", X=np.eye(4), y=np.ones(4))
    with pytest.raises(InputError, match=r"^seeds must be left out where the data are given and nothing is"):
        planned(DiagonalConfig(data=tmp_path / "data.npz", seeds=2))
    assert len(planned(DiagonalConfig(data=tmp_path / "data.npz", methods=("sgd",), seeds=2))) == 2
