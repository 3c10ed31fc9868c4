"""Figures of diagonal and ReLU networks by the data that they show."""

import numpy as np
import pytest

from lowland.diagonal.experiment import DiagonalConfig
from lowland.diagonal.experiment import conduct as conduct_diagonal
from lowland.diagonal.theorem2 import Theorem2Config
from lowland.diagonal.theorem2 import conduct as conduct_theorem2
from lowland.figures import diagonal, relu
from lowland.figures.style import drawable
from lowland.relu.experiment import ReluConfig
from lowland.relu.experiment import conduct as conduct_relu
from lowland.runs import as_rows, table_of


def line(ax, label):
    """The data of the line of this label."""
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return found.get_data()


@pytest.fixture(scope="module")
def outcomes():
    """Two seeds, one radius that diverges."""
    options = {"gamma": 0.5, "steps": 400, "theory": True, "seeds": 2, "rho_convention": "original"}
    return conduct_diagonal(DiagonalConfig(methods=("gd", "n-sam", "1-sam"), rho=(0.01, 0.9), **options))


def test_losses_show_the_median_every_seed_and_where_a_run_diverged(outcomes) -> None:
    train, test = diagonal.plot_losses(as_rows(table_of(outcomes, "result"))).axes
    x, y = line(test, "GD")
    seeds = [o.result.test_loss for o in outcomes if o.label == "GD"]
    np.testing.assert_array_equal(x, outcomes[0].result.iterations + 1)
    np.testing.assert_allclose(y, np.median(seeds, axis=0))
    thin = [entry for entry in test.get_lines() if entry.get_linewidth() == 0.5]
    assert len(thin) == len(outcomes)
    np.testing.assert_array_equal(thin[1].get_ydata(), drawable(seeds[1]))
    crosses = [entry for entry in train.get_lines() if entry.get_marker() == "x"]
    assert len(crosses) == sum(o.row()["diverged"] for o in outcomes) == 2
    lost = next(o for o in outcomes if o.row()["diverged"])
    last = np.flatnonzero(drawable(lost.result.train_loss) < 1e30)[-1]
    assert crosses[0].get_xdata() == [lost.result.iterations[last] + 1]
    assert train.get_xscale() == train.get_yscale() == "log"


def test_the_radius_picture_has_means_ranges_and_crosses_and_names_the_convention(outcomes) -> None:
    figure = diagonal.plot_radius(outcomes)
    (ax,) = figure.axes
    x, y = line(ax, "n-SAM")
    values = [[o.result.test_loss[-1] for o in outcomes if o.label == f"n-SAM, ρ = {r:g}"] for r in x]
    np.testing.assert_array_equal(x, [0.01, 0.9])
    np.testing.assert_allclose(y, np.mean(values, axis=1))
    np.testing.assert_array_equal(line(ax, "1-SAM [2ρ]")[0], [0.01])
    (cross,) = [entry for entry in ax.get_lines() if entry.get_marker() == "x"]
    assert cross.get_xdata() == [0.9]
    erm = np.mean([o.result.test_loss[-1] for o in outcomes if o.label == "GD"])
    np.testing.assert_allclose(line(ax, "GD")[1], erm)
    assert figure.get_suptitle() == diagonal.DOUBLED


def test_the_theory_picture_has_every_coordinate_of_every_run_that_ended(outcomes) -> None:
    shrinking, selected = diagonal.plot_theory(as_rows(table_of(outcomes, "weights"))).axes
    runs = [o for o in outcomes if o.label == "1-SAM, ρ = 0.01 [2ρ]"]
    x, y = line(shrinking, runs[0].label)
    np.testing.assert_array_equal(x, np.concatenate([o.theory.predicted for o in runs]))
    np.testing.assert_array_equal(y, np.concatenate([o.theory.shrunk for o in runs]))
    drawn = [entry for entry in selected.get_lines() if entry.get_marker() == "o"]
    assert len(drawn) == 4  # the radius that diverged is left out
    np.testing.assert_array_equal(drawn[0].get_ydata()[:30], outcomes[0].result.beta)


def test_losses_of_phases_mark_where_one_ends() -> None:
    found = conduct_diagonal(DiagonalConfig(phases=("gd:0.1:30+n-sam:0.1:20:0.1",)))
    ax = diagonal.plot_losses(as_rows(table_of(found, "result")), [30]).axes[0]
    assert [entry.get_xdata()[0] for entry in ax.get_lines() if entry.get_color() == "0.7"] == [30]


def test_theorem_2_has_the_measured_under_the_bound() -> None:
    checks = conduct_theorem2(Theorem2Config(m=(1, 4), steps=30, seeds=3))
    axes = diagonal.plot_convergence(as_rows(table_of(checks, "result"))).axes
    for ax, statement in zip(axes, ("loss", "gradient"), strict=True):
        chosen = [check for check in checks if check.statement == statement]
        lines = ax.get_lines()
        assert len(lines) == 4
        for check, measured, bound in zip(chosen, lines[::2], lines[1::2], strict=True):
            np.testing.assert_array_equal(measured.get_ydata(), check.found.measured)
            np.testing.assert_array_equal(bound.get_ydata(), check.found.bound)
            assert bound.get_linestyle() == "--"


def test_fits_are_a_panel_per_method_with_all_seeds_the_points_and_the_straight_lines() -> None:
    found = conduct_relu(ReluConfig(rho=(0.0, 0.3), steps=200, seeds=3))
    points = found[0].problem
    rows = relu.fit_rows(points, [(o.label, o.seed, o.result.network) for o in found])
    figure = relu.plot_fits([*rows, *(o.row() for o in found)])
    assert [ax.get_title() for ax in figure.axes] == ["ERM", "n-SAM, ρ = 0.3"]
    second = figure.axes[1].get_lines()
    assert len(second) == 3 + 1
    x, y = second[1].get_data()
    np.testing.assert_allclose(y, found[4].result.network(np.array(x)[:, None]))
    order = np.argsort(points.x[:, 0])
    np.testing.assert_array_equal(second[3].get_data(), [points.x[order, 0], points.y[order]])
    assert (second[3].get_linestyle(), second[3].get_marker()) == (":", "o")
    variation = np.mean([o.row()["slope_variation"] for o in found[3:]])
    assert figure.axes[1].get_xlabel() == f"x; slope varies by {variation:.0f}"
    assert relu.plot_fits(rows).axes[1].get_xlabel() == "x"


def test_losses_of_relu_networks_are_those_of_the_table() -> None:
    found = conduct_relu(ReluConfig(rho=(0.0, 0.3), steps=200, seeds=3))
    losses = relu.plot_losses(as_rows(table_of(found, "result"))).axes
    own = [o.result.perturbed_loss for o in found[3:]]
    np.testing.assert_array_equal(line(losses[1], "n-SAM, ρ = 0.3")[1], np.median(own, axis=0))
    assert len(losses[0].get_lines()) == 2 + 6


def test_seeds_that_stopped_at_different_times_are_drawn_without_a_median() -> None:
    rows = [
        {"run": "SAM", "seed": seed, "iteration": i, "loss": 1.0 / (i + seed + 1), "perturbed_loss": 1.0}
        for seed in (0, 1)
        for i in range(3 - seed)
    ]
    ax = relu.plot_losses(rows).axes[0]
    curves = [entry.get_ydata().tolist() for entry in ax.get_lines() if len(entry.get_xdata())]
    assert curves == [[1.0, 1 / 2, 1 / 3], [1 / 2, 1 / 3]]
    assert line(ax, "SAM")[0].size == 0


def test_what_is_too_large_is_not_drawn() -> None:
    values = drawable([1.0, 1e31, float("inf"), float("nan")])
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()
