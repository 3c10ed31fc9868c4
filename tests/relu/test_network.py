"""Networks and their kinks against functions whose slopes are known."""

import numpy as np
import pytest

from lowland.errors import InputError
from lowland.relu import Network, Regression, interpolant_variation, on_the_line, teacher_student

X = np.linspace(-1.0, 1.0, 9)[:, None]


def tent() -> Network:
    """Slope 1, then -1 from x = 0: three neurons, one of them turned round, and one that is constant."""
    return Network(np.array([[2.0, -1.0, 0.0]]), np.array([0.0, 0.5, 3.0]), np.array([-1.0, -1.0, 1.0 / 3.0]))


def test_outputs_are_the_sum_over_neurons() -> None:
    net, x = tent(), X[:, 0]
    np.testing.assert_allclose(net(X), -np.maximum(2 * x, 0) - np.maximum(0.5 - x, 0) + 1, atol=1e-14)
    assert net.hidden(X).shape == (9, 3)


def test_kinks_are_where_the_slope_changes() -> None:
    places, changes = tent().kinks()
    np.testing.assert_allclose(places, [0.0, 0.5])
    np.testing.assert_allclose(changes, [-2.0, -1.0])
    for place, change in zip(places, changes, strict=True):
        left, at, right = tent()(np.array([[place - 1e-3], [place], [place + 1e-3]]))
        np.testing.assert_allclose((right - 2 * at + left) / 1e-3, change, rtol=1e-6)


def test_variation_counts_what_lies_between() -> None:
    assert tent().slope_variation(-1, 1) == pytest.approx(3.0)
    assert tent().slope_variation(0.1, 1) == pytest.approx(1.0)
    assert tent().slope_variation(0.0, 0.5) == 0.0


def test_kinks_at_one_place_are_added_and_may_cancel() -> None:
    net = Network(np.array([[1.0, -1.0]]), np.array([0.2, -0.2]), np.array([3.0, -3.0]))
    places, changes = net.kinks()
    np.testing.assert_allclose(places, [-0.2])
    np.testing.assert_allclose(changes, [0.0])
    assert net.slope_variation(-1, 1) == 0.0
    assert net.active_kinks(-1, 1) == 0


def test_active_kinks_are_bins_whose_slope_changes() -> None:
    places = np.array([-0.51, -0.52, 0.011, 0.33, 0.81, 0.82, 0.61])
    changes = np.array([1.0, 1.0, 0.05, -0.2, 3.0, -3.0, 5.0])
    net = Network(np.ones((1, 7)), -places, changes)
    # One bin of two, one of -0.2; 0.05 is too little, two cancel, and 0.61 is outside or not.
    assert net.active_kinks(-1.0, 0.6) == 2
    assert net.active_kinks(-1.0, 1.0) == 3


def test_the_twelve_points_are_the_notebooks() -> None:
    problem = on_the_line()
    np.testing.assert_allclose(problem.x[:, 0], np.arange(-5.5, 6) / 4 + 0.07)
    np.testing.assert_allclose(problem.y - 0.345, [-2, 1.5, 0, 0, 2, 1, 0, -1, 0, 1, 2, -1])
    assert interpolant_variation(problem) == pytest.approx(70.0)


def test_the_interpolant_is_no_less_varied_than_its_own_network() -> None:
    """The straight lines through the points, written as a network, have the variation that is claimed."""
    problem = on_the_line()
    x, y = problem.x[:, 0], problem.y
    slopes = np.diff(y) / np.diff(x)
    places, changes = x[:-1], np.diff(slopes, prepend=0.0)
    net = Network(
        np.append(np.ones((1, 11)), [[0.0]], axis=1), np.append(-places, 1.0), np.append(changes, y[0])
    )
    np.testing.assert_allclose(net(problem.x), y, atol=1e-12)
    assert net.slope_variation(x.min(), x.max()) == pytest.approx(interpolant_variation(problem))


@pytest.mark.parametrize(
    ("target", "function"),
    [
        ("sine", lambda x: np.sin(2 * np.pi * x)),
        ("absolute", lambda x: abs(x - 0.07)),
        ("step", lambda x: np.sign(x - 0.07)),
    ],
)
def test_other_targets_are_functions_of_as_many_points_as_wanted(target, function) -> None:
    problem = on_the_line(target, points=20)
    assert problem.n == 20
    np.testing.assert_allclose(problem.y, [function(x) for x in problem.x[:, 0]])
    noisy = on_the_line(target, points=20, noise=0.5, seed=3)
    np.testing.assert_allclose(noisy.y - problem.y, 0.5 * np.random.default_rng(3).standard_normal(20))


def test_a_students_targets_are_its_teachers() -> None:
    problem = teacher_student(n=30, d=4, teachers=1, n_test=7, seed=1)
    assert (problem.x.shape, problem.x_test.shape) == ((30, 4), (7, 4))
    on = problem.y != 0
    direction = np.linalg.lstsq(problem.x[on], problem.y[on], rcond=None)[0]
    np.testing.assert_allclose(problem.x[on] @ direction, problem.y[on], atol=1e-12)
    assert np.linalg.norm(direction) == pytest.approx(1.0)
    np.testing.assert_allclose(np.sign(problem.x[~on] @ direction), -np.sign(problem.y[on][0]))


def test_features_count_rank_activity_and_direction() -> None:
    problem = Regression.of(np.array([[1.0], [2.0], [-1.0]]), np.zeros(3))
    net = Network(np.array([[1.0, 2.0, -1.0, 1.0]]), np.array([0.0, 0.0, 0.0, -5.0]), np.ones(4))
    assert net.features(problem) == (2, 3, 2)  # two parallel neurons, one on the other side, one never active
    dead = Network(np.array([[1.0]]), np.array([-9.0]), np.ones(1))
    assert dead.features(problem) == (0, 0, 0)


def test_initialization_has_the_notebooks_scales() -> None:
    net = Network.initialized(width=20_000, seed=1)
    np.testing.assert_allclose(np.abs(net.w), 2.5)
    assert abs(net.w.mean()) < 0.1
    assert abs(net.b.std() - 2.5) < 0.05
    assert abs(net.a.std() - 4.0) < 0.1
    half = Network.initialized(width=20_000, seed=1, scale=0.5)
    np.testing.assert_allclose([half.a, half.b], [0.5 * net.a, 0.5 * net.b])
    several = Network.initialized(width=50, d=3)
    np.testing.assert_allclose(np.linalg.norm(several.w, axis=0), 2.5)
    assert not np.array_equal(Network.initialized(seed=0).a, Network.initialized(seed=1).a)
    assert several.norms() == (pytest.approx(np.linalg.norm(several.a)), pytest.approx(2.5 * 50**0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Network.initialized(width=0), "width, d and scale must be positive, got 0, 1 and 1.0."),
        (lambda: Network.initialized(d=2).kinks(), "kinks need a network of one input, got 2."),
        (lambda: on_the_line(points=13), "points must be 12 for the target maennel, got 13."),
        (
            lambda: on_the_line("sine", points=1),
            "points must be at least 2 and noise non-negative, got 1 and 0.0.",
        ),
        (lambda: teacher_student(teachers=0), "teachers must be at least 1, got 0."),
        (
            lambda: Regression.of(np.ones(3), np.ones(2)),
            r"x must have a row, and y a number, per example; got shapes \(3,\) and \(2,\).",
        ),
        (
            lambda: Regression.of(np.ones(1), np.array([np.nan])),
            "x and y must be finite, got NaN or infinity.",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
