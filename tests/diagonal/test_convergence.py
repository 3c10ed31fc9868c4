"""Theorem 2: constants, iterates and bounds against closed forms."""

import json

import numpy as np
import pytest

from lowland.diagonal import Quadratics, convergence, loss_gap, mean_square_gradient, sparse_regression
from lowland.diagonal.theorem2 import Theorem2Config, conduct
from lowland.errors import InputError


def noisy(**options) -> Quadratics:
    return Quadratics.noisy([1.0, 0.5, 0.2, 0.0], **options)


def test_constants_are_those_of_the_hessian() -> None:
    problem = noisy(n=30, seed=3)
    assert problem.beta == pytest.approx(1.0)
    assert problem.mu == pytest.approx(0.2)
    w = np.random.default_rng(0).standard_normal((5, 4))
    gaps = problem.loss(w) - problem.minimum
    assert (0.5 * np.square(problem.gradient(w)).sum(axis=1) >= problem.mu * gaps - 1e-12).all()
    np.testing.assert_allclose(problem.variance(w), problem.variance(w)[0])  # the same everywhere


def test_least_squares_are_those_of_the_data() -> None:
    data = sparse_regression(seed=2, n=6, d=9, sparsity=2, label_noise=0.5, n_test=0)
    problem = Quadratics.least_squares(data)
    w = np.random.default_rng(1).standard_normal((3, 9))
    residuals = w @ data.X.T - data.y
    np.testing.assert_allclose(problem.loss(w), 0.5 * np.mean(residuals**2, axis=1))
    np.testing.assert_allclose(problem.gradient(w), residuals @ data.X / 6)
    group = np.array([[0, 1], [2, 2], [5, 3]])
    for row, rows, found in zip(w, group, problem.group_gradient(w, group), strict=True):
        np.testing.assert_allclose(found, data.X[rows].T @ (data.X[rows] @ row - data.y[rows]) / 2)
    slopes = residuals[:, :, None] * data.X
    spread = np.square(slopes - slopes.mean(axis=1, keepdims=True)).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(problem.variance(w), spread)
    assert problem.minimum == pytest.approx(0.0, abs=1e-12)
    assert problem.beta == pytest.approx(np.square(data.X).sum(axis=1).max())
    values = np.linalg.eigvalsh(data.X @ data.X.T / 6)
    assert problem.mu == pytest.approx(values.min())


def test_without_noise_the_gap_is_a_product_of_known_factors() -> None:
    """Each eigendirection shrinks by 1 - γλ(1 + ρλ) in each step."""
    values = np.array([1.0, 0.5, 0.2, 0.0])
    problem = Quadratics.noisy(values, n=3, noise=0.0, seed=1)
    found = loss_gap(problem, steps=60, m=2, runs=3, seed=7)
    hessian = problem.mean[0]
    start = np.random.default_rng(7).standard_normal((3, 4))
    w = start / np.linalg.norm(start, axis=1, keepdims=True)
    wanted = []
    for t in range(60):
        gamma = min((8 * t + 4) / (3 * 0.2 * (t + 1) ** 2), 0.5)
        step = np.eye(4) - gamma * hessian @ (np.eye(4) + np.sqrt(gamma) * hessian)
        w = w @ step
        wanted.append(np.mean(0.5 * np.sum((w @ hessian) * w, axis=1)))
    np.testing.assert_allclose(found.measured, wanted, rtol=1e-9, atol=1e-16)
    assert found.variance == pytest.approx(0.0, abs=1e-20)
    first = problem.loss(start / np.linalg.norm(start, axis=1, keepdims=True)).mean()
    np.testing.assert_allclose(found.bound, 3 * first / (0.2 * found.steps) ** 2)


@pytest.mark.parametrize("m", [1, 8])
@pytest.mark.parametrize("problem", [noisy(), Quadratics.least_squares(sparse_regression(d=22, n_test=0))])
def test_what_is_measured_stays_under_the_bounds(problem, m) -> None:
    gap = loss_gap(problem, steps=2000, m=m, runs=8)
    assert (gap.measured + 3 * gap.error < gap.bound).all()
    slope = mean_square_gradient(problem, steps=(10, 100, 400), m=m, runs=8)
    assert (slope.measured + 3 * slope.error < slope.bound).all()


def test_with_noise_the_gap_falls_as_one_over_m_and_t() -> None:
    gaps = {m: loss_gap(noisy(), steps=4000, m=m, runs=40) for m in (1, 8)}
    one = gaps[1]
    late = {T: one.measured[(one.steps > 0.7 * T) & (one.steps <= T)].mean() for T in (1000, 4000)}
    assert 2.5 < late[1000] / late[4000] < 6.5
    last = [gap.measured[gap.steps > 2500].mean() for gap in gaps.values()]
    assert 4.5 < last[0] / last[1] < 14


def test_the_bound_would_catch_steps_that_do_not_shrink(monkeypatch) -> None:
    """A constant step leaves a floor of noise, which the bound of a long run is below."""
    problem = noisy(noise=3.0)
    walk = convergence._walk
    monkeypatch.setattr(
        convergence, "_walk", lambda problem, _, *rest: walk(problem, lambda _: (1.0, 0.3), *rest)
    )
    gap = loss_gap(problem, steps=15_000, m=1, runs=2)
    assert gap.measured[-1] > gap.bound[-1]


def test_one_run_has_no_standard_error() -> None:
    assert np.isnan(loss_gap(noisy(), steps=5, runs=1).error).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss_gap(noisy(), m=0), "m must be positive, got 0."),
        (lambda: mean_square_gradient(noisy(), steps=()), "steps must be positive, got 0."),
        (lambda: loss_gap(noisy(), runs=0), "runs must be positive, got 0."),
        (
            lambda: Quadratics.noisy([0.0]),
            r"eigenvalues must be non-negative, one of them positive, got \[0.0\].",
        ),
        (lambda: Quadratics.noisy([1.0], n=0), "n must be positive and noise non-negative, got 0 and 1.0."),
        (lambda: Theorem2Config(m=()), "m must be at least one number, got none."),
        (lambda: Theorem2Config(seeds=0), "seeds must be positive, got 0."),
        (lambda: Theorem2Config(label_noise=1.0), "label_noise must be left out for noisy, got 1.0."),
        (lambda: Theorem2Config("regression", noise=2.0), "noise must be left out for regression, got 2.0."),
    ],
)
def test_wrong_numbers_are_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_check_has_a_row_and_a_curve_for_both_statements_and_every_m() -> None:
    done = []
    config = Theorem2Config("regression", m=(1, 4), steps=40, seeds=3, label_noise=0.1)
    checks = conduct(config, on_done=done.append)
    assert [(check.label, check.statement) for check in checks] == [
        *(("m = 1", "loss"), ("m = 1", "gradient")),
        *(("m = 4", "loss"), ("m = 4", "gradient")),
    ]
    assert done == [0, 1, 2, 3]
    assert checks[0].row()["steps"] == 40
    assert checks[1].tables()["result"]["steps"].tolist() == [10, 30]
    assert checks[3].row()["closest"] == pytest.approx(
        (checks[3].found.measured / checks[3].found.bound).max()
    )
    json.dumps([check.row() for check in checks])
    assert conduct(Theorem2Config(steps=5, seeds=2, m=(1,)))[1].found.steps.tolist() == [5]
