"""The figures of the small models draw the numbers that they are given, and judge them."""

import numpy as np
import pytest

from lowland.diagonal.experiment import DiagonalConfig
from lowland.figures.paper import FIGURES, diagonal_notebook, fig6, relu, theorem2, theory
from lowland.figures.paper.cells import CELLS
from lowland.relu.experiment import ReluConfig
from lowland.runs import read_table
from lowland.sweeps import Simulation, Store
from sweeps.test_tasks import carry


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def curve(run, losses, **more):
    about = {"kind": "curve", "published": False, "run": run, "seed": 0} | more
    return [about | {"iteration": i, "train_loss": x, "test_loss": 2 * x} for i, x in enumerate(losses)]


def final(run, test_loss, **more):
    about = {"kind": "final", "published": False, "run": run, "test_loss": test_loss}
    return about | {"diverged": test_loss is None} | more


def test_losses_over_iterations_are_medians_from_one_and_end_where_a_run_diverged() -> None:
    rows = curve("GD", [1.0, 0.5, 0.25], seed=0) + curve("GD", [3.0, 1.5, 0.75], seed=1)
    rows += curve("GD", [2.0, 1.0, 0.5], seed=2) + curve("1-SAM", [1.0, 1e40, float("nan")])
    train, test = FIGURES["diagonal-notebook-1"].plot(rows).axes
    np.testing.assert_allclose(lines(train)["GD"].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(lines(train)["GD"].get_ydata(), [2.0, 1.0, 0.5])
    np.testing.assert_allclose(lines(test)["GD"].get_ydata(), [4.0, 2.0, 1.0])
    np.testing.assert_allclose(lines(train)["1-SAM"].get_ydata(), [1.0, np.nan, np.nan])


@pytest.mark.parametrize("cell", CELLS[:2])
def test_printed_numbers_agree_only_to_nine_digits_and_only_if_all_are_there(cell) -> None:
    figure = FIGURES[f"diagonal-notebook-{cell.number}"]
    rows = [final(run, loss) for run, loss in cell.printed.items()]
    assert [claim.verdict for claim in figure.claims(rows)] == ["agrees"]
    assert [claim.verdict for claim in figure.claims(rows[:-1])] == ["disagrees"]
    rows[1]["test_loss"] *= 1 + 1e-7
    assert [claim.verdict for claim in figure.claims(rows)] == ["disagrees"]


def test_the_printed_runs_are_those_that_are_run() -> None:
    for cell in CELLS[:2]:
        (config,) = cell.configs
        labels = {plan.label for plan in config.plans(0, 30)}
        assert labels == set(cell.printed)


def test_the_grid_is_drawn_twice_and_divergence_is_a_cross() -> None:
    rows = [final("GD", 0.016)]
    for rho, n, one, stale in ((0.1, 0.0165, 0.001, 0.0158), (0.9, 0.034, None, 0.033)):
        rows += [final(f"n-SAM, ρ = {rho}", n), final(f"1-SAM, ρ = {rho} [2ρ]", one)]
        rows.append(final(f"n-SAM, ρ = {rho}, γ = 10/d", stale))
    for ax in FIGURES["diagonal-notebook-4"].plot(rows).axes:
        np.testing.assert_allclose(lines(ax)["n-SAM"].get_ydata(), [0.0165, 0.034])
        np.testing.assert_allclose(lines(ax)["n-SAM, γ = 10/d"].get_ydata(), [0.0158, 0.033])
        np.testing.assert_allclose(lines(ax)["1-SAM [2ρ]"].get_xdata(), [0.1])
        crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
        assert [line.get_xdata()[0] for line in crosses] == [0.9]
    first, second = FIGURES["diagonal-notebook-4"].claims(rows)
    assert (first.verdict, second.verdict) == ("disagrees", "disagrees")
    rows[0]["test_loss"], rows[2]["test_loss"] = 0.017, 1e-8
    first, second = FIGURES["diagonal-notebook-4"].claims(rows)
    assert (first.verdict, second.verdict) == ("agrees", "agrees")


def test_the_stale_step_size_is_named(tmp_path) -> None:
    configs = [
        DiagonalConfig(rho=(0.1,), gamma=0.5, steps=20, rho_convention="original"),
        DiagonalConfig(methods=("n-sam",), rho=(0.1,), gamma=1 / 3, steps=20),
    ]
    store, tasks = Store(tmp_path / "runs"), [Simulation(config) for config in configs]
    carry(store, *tasks)
    rows = diagonal_notebook._data(CELLS[3], tasks, store)
    assert [row["run"] for row in rows] == [
        "GD",
        "n-SAM, ρ = 0.1",
        "1-SAM, ρ = 0.1 [2ρ]",
        "n-SAM, ρ = 0.1, γ = 10/d",
    ]
    assert rows[1]["test_loss"] != rows[3]["test_loss"]


def test_between_two_minima_the_ends_are_the_runs(tmp_path) -> None:
    store, (task,) = Store(tmp_path / "runs"), FIGURES["diagonal-interpolation"].runs("quick")
    carry(store, task)
    rows = FIGURES["diagonal-interpolation"].data([task], store)
    at = {round(row["a"], 6): row for row in rows}
    gd, switched, _ = store.run(task).rows()
    assert at[1.0]["test_loss"] == pytest.approx(gd["test_loss"], rel=1e-9)
    assert at[0.0]["test_loss"] == pytest.approx(switched["test_loss"], rel=1e-9)
    assert at[1.0]["train_loss"] == pytest.approx(gd["train_loss"], rel=1e-6)
    (ax,) = FIGURES["diagonal-interpolation"].plot(rows).axes
    np.testing.assert_allclose(lines(ax)["test loss"].get_ydata(), [row["test_loss"] for row in rows])


def test_figure_6_is_in_the_papers_units_and_near_its_plateaus(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fig6, "_FOUND", DiagonalConfig(rho=(0.117,), gamma=0.0667, alpha=0.021, steps=100))
    store, tasks = Store(tmp_path / "runs"), fig6.runs("quick")
    carry(store, *tasks)
    rows = fig6.data(tasks, store)
    table = read_table(store.run(tasks[0]).path / "result.parquet")
    drawn = [row["train_loss"] for row in rows if row["kind"] == "curve"]
    np.testing.assert_allclose(drawn, 40 * np.array(table["train_loss"]))
    assert drawn[0] == pytest.approx(12.1, abs=0.1)
    rows = [
        {"kind": "curve", "published": False, "run": run, "iteration": i, "train_loss": 1.0, "test_loss": x}
        for run, x in (("GD", 1.2e-3), ("n-SAM, ρ = 0.117", 1.6e-3), ("1-SAM, ρ = 0.117", 1.5e-4))
        for i in (0, 9)
    ]
    assert [claim.verdict for claim in fig6.claims(rows)] == ["agrees", "disagrees", "agrees"]


def test_theorem_1_is_judged_without_what_finite_steps_shrink() -> None:
    rows = [final("GD", 0.01, shrunk=0.03, predicted=0.0, distance=0.001)]
    for rho in (0.003, 0.03, 0.3):
        rows.append(final(f"n-SAM, ρ = {rho}", 0.01, shrunk=0.03 + rho, predicted=rho, distance=0.001))
        rows.append(
            final(f"1-SAM, ρ = {rho}", 0.01, shrunk=0.03 + 20 * rho, predicted=20 * rho, distance=0.001)
        )
    assert [claim.verdict for claim in theory.claims(rows)] == ["agrees"] * 3
    rows[1]["predicted"], rows[2]["distance"] = 0.9 * rows[1]["predicted"], 0.02
    assert [claim.verdict for claim in theory.claims(rows)] == ["disagrees", "disagrees", "agrees"]
    points = [
        {"kind": "coordinate", "published": False, "run": "1-SAM", "predicted": p, "shrunk": s}
        | {"minimizer": 0.1, "beta": 0.2}
        for p, s in ((0.1, 0.11), (0.2, 0.21))
    ]
    left, right = theory.plot(points).axes
    np.testing.assert_allclose(lines(left)["1-SAM"].get_ydata(), [0.11, 0.21])
    np.testing.assert_allclose(lines(right)["1-SAM"].get_xdata(), [0.1, 0.1])


def test_theorem_2_is_violated_by_one_point_above_the_bound() -> None:
    rows = [
        {"kind": "curve", "published": False, "run": "m = 1", "statement": s, "steps": t, "measured": 0.5 / t}
        | {"error": 0.01, "bound": 1.0 / t}
        for s in ("loss", "gradient")
        for t in (1, 10)
    ]
    assert [claim.verdict for claim in theorem2.claims(rows)] == ["agrees", "agrees"]
    rows[-1]["measured"] = 0.2
    assert [claim.verdict for claim in theorem2.claims(rows)] == ["agrees", "disagrees"]
    loss, _ = theorem2.FIGURE.plot(rows).axes
    np.testing.assert_allclose(lines(loss)["m = 1"].get_ydata(), [0.5, 0.05])
    np.testing.assert_allclose(lines(loss)["m = 1, bound"].get_ydata(), [1.0, 0.1])


def test_relu_fits_are_those_of_the_trained_networks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(relu, "_CONFIG", ReluConfig(steps=200, seeds=2))
    store, tasks = Store(tmp_path / "runs"), relu.runs("quick")
    carry(store, *tasks)
    rows = relu.data(tasks, store)
    fits = [row for row in rows if row["kind"] == "fit"]
    assert {(row["run"], row["seed"]) for row in fits} == {
        (run, seed) for run in ("ERM", "n-SAM, ρ = 0.3") for seed in (0, 1)
    }
    problem = relu._CONFIG.data()
    finals = {(r["run"], r["seed"]): r for r in rows if r["kind"] == "final"}
    for key, row in finals.items():
        own = [(r["x"], r["y"]) for r in fits if (r["run"], r["seed"]) == key]
        x, y = np.array(own).T
        at_points = np.interp(problem.x[:, 0], x, y)
        loss = 0.5 * ((at_points - problem.y) ** 2).sum()
        assert loss == pytest.approx(row["loss"], rel=0.05)
    assert len(relu.FIGURE.plot(rows).axes) == 2
    lower = [final("ERM", None, slope_variation=v, active_kinks=40 + v) for v in (600.0, 700.0)]
    sam = [final("n-SAM", None, slope_variation=v, active_kinks=20 + v) for v in (90.0, 100.0)]
    assert [claim.verdict for claim in relu.claims(lower + sam)] == ["agrees", "agrees"]
    sam[0]["slope_variation"] = 650.0
    assert [claim.verdict for claim in relu.claims(lower + sam)] == ["cannot be told", "agrees"]
