"""Theorem 1 against simulation, and the convex solver against closed forms and other solvers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from lowland.diagonal import (
    Phase,
    Plan,
    Problem,
    compare,
    effective_alpha,
    kkt_residual,
    loss,
    minimum_l1,
    minimum_l2,
    minimum_potential,
    potential,
    predicted_alpha,
    sparse_regression,
    train,
)
from lowland.diagonal.experiment import DiagonalConfig, conduct
from lowland.errors import InputError

NOTEBOOK = sparse_regression()


def plan_of(method, rho, *, gamma=0.01, steps=150_000, convention="original", alpha=0.1, **options):
    return Plan((Phase(method, gamma, steps, rho, rho_convention=convention, **options),), alpha)


@pytest.mark.parametrize(
    ("method", "rho", "test", "area", "shrunk", "predicted", "kkt", "l1_norm", "on", "off"),
    [
        ("gd", 0.0, 0.014397, 1.586, 0.0285, 0.0, 1.5e-6, 1.770, (0.006, 0.001, 0.003), 0.0007),
        ("n-sam", 0.3, 0.017511, 1.730, 1.955, 1.922, 1.5e-4, 1.800, (0.402, 0.078, 0.209), 0.047),
        ("1-sam", 0.03, 0.008470, 1.664, 6.759, 6.724, 9e-5, 1.704, (0.285, 0.226, 0.181), 0.225),
    ],
)  # fmt: skip
def test_the_numerical_check_of_theorem_1(
    method, rho, test, area, shrunk, predicted, kkt, l1_norm, on, off
) -> None:
    """A re-implementation's numbers on the notebook's data, to the digits that were noted."""
    plan = plan_of(method, rho)
    result = plan.run(NOTEBOOK)
    found = compare(NOTEBOOK, plan, result)
    assert result.test_loss[-1] == pytest.approx(test, abs=6e-7)
    assert found.area == pytest.approx(area, abs=6e-4)
    assert found.shrunk.sum() == pytest.approx(shrunk, abs=6e-4)
    assert found.predicted.sum() == pytest.approx(predicted, abs=6e-4)
    assert found.kkt == pytest.approx(kkt, rel=0.04)
    assert result.l1_norm == pytest.approx(l1_norm, abs=6e-4)
    np.testing.assert_allclose(found.shrunk[:3], on, atol=6e-4)
    assert found.shrunk[3:].mean() == pytest.approx(off, abs=6e-4)
    np.testing.assert_allclose(predicted_alpha(result, 0.05), 0.05 * np.exp(-found.predicted))
    assert found.distance < 1e-3
    assert found.hidden == 0


def test_what_finite_steps_shrink_by_themselves_is_exact_per_step() -> None:
    r"""A step multiplies :math:`w_+ w_-` by :math:`1 - 2\gamma\rho g g' - \gamma^2 g'^2(1 - \rho^2 g^2)`."""
    gamma, rho, steps = 0.05, 0.3, 40
    plan = plan_of("n-sam", rho, gamma=gamma, steps=steps)
    found = compare(NOTEBOOK, plan, plan.run(NOTEBOOK))
    X, y = NOTEBOOK.X, NOTEBOOK.y
    u, v, wanted = np.full(30, 0.1), np.zeros(30), np.zeros(30)
    for _ in range(steps):
        g = X.T @ (X @ (u * v) - y) / 20
        up, vp = u + rho * g * v, v + rho * g * u
        p = X.T @ (X @ (up * vp) - y) / 20
        wanted -= 0.5 * np.log(1 - 2 * gamma * rho * g * p - gamma**2 * p**2 * (1 - rho**2 * g**2))
        u, v = u - gamma * p * vp, v - gamma * p * up
    np.testing.assert_allclose(found.shrunk, wanted, rtol=1e-9, atol=1e-13)
    assert np.abs(found.shrunk - found.predicted).max() > 1e-5


def test_gradient_flow_conserves_alpha_and_steps_lose_in_proportion_to_their_size() -> None:
    shrunk = []
    for gamma in (0.04, 0.02, 0.01):
        plan = plan_of("gd", 0.0, gamma=gamma, steps=int(400 / gamma))
        shrunk.append(compare(NOTEBOOK, plan, plan.run(NOTEBOOK)).shrunk.sum())
    np.testing.assert_allclose(np.divide(shrunk[:-1], shrunk[1:]), 2.0, rtol=0.05)


@pytest.mark.parametrize(("method", "rho"), [("n-sam", 0.3), ("1-sam", 0.02), ("m-sam", 0.1)])
def test_kkt_residual_and_the_gap_to_the_formula_shrink_with_the_step(method, rho) -> None:
    found = []
    for gamma in (0.08, 0.02):
        m = {"m": 5} if method == "m-sam" else {}
        plan = plan_of(method, rho, gamma=gamma, steps=int(8000 / gamma), **m)
        found.append(compare(NOTEBOOK, plan, plan.run(NOTEBOOK)))
    coarse, fine = found
    assert fine.kkt < coarse.kkt / 2.5
    gaps = [np.abs(f.shrunk - f.predicted).sum() for f in found]
    assert gaps[1] < gaps[0] / 2.5
    assert gaps[1] < 0.1 * np.abs(fine.predicted).sum()


def test_trained_coefficients_come_near_the_potentials_minimizer_as_training_goes_on() -> None:
    distances = []
    for steps in (20_000, 80_000, 320_000):
        plan = plan_of("1-sam", 0.03, steps=steps)
        distances.append(compare(NOTEBOOK, plan, plan.run(NOTEBOOK)).distance)
    assert distances[0] > 3 * distances[1] > 9 * distances[2]
    assert distances[2] < 3e-4


def test_derivative_only_1_sam_shrinks_nothing() -> None:
    plan = plan_of("1-sam", 0.1, gamma=0.002, steps=50_000, derivative_only=True)
    found = compare(NOTEBOOK, plan, plan.run(NOTEBOOK))
    assert not found.predicted.any()
    assert np.abs(found.shrunk).max() < 2e-3


def test_what_rounding_hides_is_predicted() -> None:
    """At this radius alpha is below the last bit of u - v, and the minimizer that of least l1."""
    plan = plan_of("1-sam", 0.3)
    found = compare(NOTEBOOK, plan, plan.run(NOTEBOOK))
    assert 0 < found.hidden < 30
    seen = ~np.isnan(found.shrunk)
    np.testing.assert_allclose(found.shrunk[seen], found.predicted[seen], rtol=0.01)
    assert found.predicted[~seen].min() > 5
    assert found.distance < 1e-3
    np.testing.assert_allclose(found.minimizer, minimum_l1(NOTEBOOK), atol=1e-3)


def test_a_run_that_diverged_compares_as_nan() -> None:
    plan = plan_of("1-sam", 0.9, gamma=0.5, steps=2000)
    found = compare(NOTEBOOK, plan, plan.run(NOTEBOOK))
    assert np.isnan([found.kkt, found.distance, found.area]).all()
    assert np.isnan(found.minimizer).all()
    assert np.isnan(found.shrunk).all()


@given(st.integers(1, 5), st.integers(1, 6), st.floats(-9, 1.5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_minimizer_interpolates_and_satisfies_its_conditions(n, more, log_alpha, seed) -> None:
    draw = np.random.default_rng(seed)
    problem = Problem.of(draw.standard_normal((n, n + more)), draw.standard_normal(n))
    alpha = np.exp(log_alpha + draw.uniform(-1, 1, problem.d))
    beta = minimum_potential(problem, alpha)
    np.testing.assert_allclose(problem.X @ beta, problem.y, rtol=1e-8, atol=1e-10)
    assert kkt_residual(beta, alpha, problem.X) < 1e-7


def test_effective_initializations_that_no_number_holds_have_their_minimizer() -> None:
    config = DiagonalConfig(
        methods=("1-sam",), rho=(0.9,), rho_convention="original", steps=2_000, theory=True, seeds=2
    )
    for outcome in conduct(config):
        theory = outcome.theory
        assert theory is not None
        assert theory.predicted.max() > 1_000.0
        X, y = outcome.problem.X, outcome.problem.y
        np.testing.assert_allclose(X @ theory.minimizer, y, atol=1e-10)
        # In the limit the potential is an l1 norm with weights log(1 / alpha).
        weights = theory.predicted + np.log(1.0 / 0.1)
        split = linprog(np.tile(weights, 2), A_eq=np.hstack([X, -X]), b_eq=y).x
        np.testing.assert_allclose(theory.minimizer, np.subtract(*np.split(split, 2)), atol=1e-9)
        assert theory.distance == pytest.approx(1.0)  # the run itself collapsed to zero


def test_the_minimizer_agrees_with_a_general_solver() -> None:
    problem = sparse_regression(seed=4, n=4, d=7, sparsity=2, n_test=0)
    alpha = np.linspace(0.3, 0.9, 7)
    found = minimize(
        lambda beta: potential(beta, alpha),
        minimum_l2(problem),
        method="SLSQP",
        constraints={"type": "eq", "fun": lambda beta: problem.X @ beta - problem.y},
        options={"ftol": 1e-15, "maxiter": 2000},
    )
    np.testing.assert_allclose(minimum_potential(problem, alpha), found.x, atol=1e-5)


@pytest.mark.parametrize("alpha", [[0.1, 0.2, 0.5], [1e-130, 1e-100, 1e-101], [1e-120, 1.0, 1e30]])
def test_the_minimizer_of_one_equation_is_known(alpha) -> None:
    problem = Problem.of([[1.0, 1.0, -1.0]], [3.0])
    square = np.square(alpha)
    wanted = 3.0 * square / square.sum() * [1, 1, -1]  # 2 alpha^2 sinh(s), with the same s for all
    np.testing.assert_allclose(minimum_potential(problem, alpha), wanted, rtol=1e-12)


def certify(problem, log_alpha) -> None:
    """A convex problem's minimizer: it interpolates, and the potential's slope is in the row space of X."""
    beta = minimum_potential(problem, np.exp(log_alpha))
    np.testing.assert_allclose(problem.X @ beta, problem.y, rtol=0.0, atol=1e-9)
    ratio = np.log(np.abs(beta)) - 2.0 * log_alpha
    slope = np.sign(beta) * np.where(ratio > 30.0, ratio, np.arcsinh(np.exp(np.minimum(ratio, 30.0)) / 2.0))
    np.testing.assert_allclose(problem.X.T @ np.linalg.pinv(problem.X.T) @ slope, slope, rtol=0.0, atol=1e-8)


def test_initializations_from_one_to_the_least_that_numbers_hold_have_their_minimizer() -> None:
    for seed in range(200):
        problem = sparse_regression(seed=seed, n=20, d=30, sparsity=3, n_test=0)
        certify(problem, -np.random.default_rng(seed).uniform(0.0, 300.0, 30))


@pytest.mark.parametrize(("least", "most"), [(-300.0, -300.0), (-20.0, 20.0), (-100.0, 60.0)])
def test_initializations_of_very_different_sizes_have_their_minimizer(least, most) -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        problem = Problem.of(draw.standard_normal((20, 30)), draw.standard_normal(20))
        certify(problem, draw.uniform(least, most, 30))


def test_where_nothing_interpolates_the_minimizer_is_one_of_least_squares() -> None:
    noisy = sparse_regression(n=40, d=30, label_noise=1.0, n_test=0)
    np.testing.assert_allclose(minimum_potential(noisy, 0.1), minimum_l2(noisy), rtol=1e-10)
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((8, 3)) @ draw.standard_normal((3, 6)), draw.standard_normal(8)
    beta = minimum_potential(Problem.of(X, y), 0.1)
    np.testing.assert_allclose(X.T @ (X @ beta), X.T @ y, atol=1e-10)
    assert kkt_residual(beta, 0.1, X) < 1e-10


def test_targets_of_zero_have_the_minimizer_zero() -> None:
    for X in (NOTEBOOK.X, np.zeros((20, 30))):
        beta = minimum_potential(Problem.of(X, np.zeros(20)), 0.1)
        np.testing.assert_array_equal(beta, np.zeros(30))
        assert kkt_residual(beta, 0.1, X) == 0.0


def test_an_alpha_whose_square_is_no_number_beside_the_targets_is_refused() -> None:
    with pytest.raises(InputError, match="alpha must be at most 1e300 times the targets, got 1e32"):
        minimum_potential(NOTEBOOK, 1e160)


def test_large_alpha_selects_the_least_l2_norm_and_small_the_least_l1_norm() -> None:
    np.testing.assert_allclose(minimum_potential(NOTEBOOK, 30.0), minimum_l2(NOTEBOOK), atol=1e-6)
    np.testing.assert_allclose(minimum_potential(NOTEBOOK, 1e-40), NOTEBOOK.theta_star, atol=1e-3)
    for alpha in (1e-60, 1e-3, 10.0):
        np.testing.assert_allclose(NOTEBOOK.X @ minimum_potential(NOTEBOOK, alpha), NOTEBOOK.y, atol=1e-8)


def test_least_norm_interpolators_of_the_notebook() -> None:
    sparse, dense = minimum_l1(NOTEBOOK), minimum_l2(NOTEBOOK)
    np.testing.assert_allclose(sparse, NOTEBOOK.theta_star, atol=1e-12)
    assert np.abs(sparse).sum() == pytest.approx(1.49864, abs=5e-6)
    assert loss(NOTEBOOK.X_test, NOTEBOOK.y_test, dense) == pytest.approx(0.28226, abs=5e-6)


def test_the_potential_has_its_gradient_and_its_limits() -> None:
    beta, alpha = np.array([0.3, -2.0, 0.0]), np.array([0.5, 0.1, 1.0])
    for j in range(3):
        step = 1e-6 * np.eye(3)[j]
        slope = (potential(beta + step, alpha) - potential(beta - step, alpha)) / 2e-6
        assert slope == pytest.approx(np.arcsinh(beta[j] / (2 * alpha[j] ** 2)), abs=1e-8)
    assert potential(np.zeros(3), 0.7) == 0.0
    assert potential(beta, 50.0) == pytest.approx(np.sum(beta**2) / (4 * 50.0**2), rel=1e-6)
    tiny = potential(beta, 1e-9) / potential([1.0, 0.0, 0.0], 1e-9)
    assert tiny == pytest.approx(np.abs(beta).sum(), rel=0.02)


def test_the_potential_is_a_number_where_squares_are_none() -> None:
    z = -0.3 / 0.4**2
    wanted = 0.4**2 * (2.0 - np.sqrt(4.0 + z * z) + z * np.arcsinh(z / 2.0))
    assert potential([-0.3], 0.4) == pytest.approx(wanted, rel=1e-14)
    assert potential([2.0, 0.0], 1e-200) == pytest.approx(2.0 * (np.log(2.0) + 400.0 * np.log(10.0) - 1.0))
    assert potential([2e150, 0.0], 1e160) == pytest.approx(1e-20)


def test_effective_alpha_is_the_geometric_mean_of_the_pair() -> None:
    w_plus, w_minus = np.array([0.5, 2.0]), np.array([0.02, -0.5])
    np.testing.assert_allclose(effective_alpha(w_plus + w_minus, w_plus - w_minus), [0.1, 1.0])
    np.testing.assert_allclose(effective_alpha([2e-200], [0.0]), [1e-200])


def test_kkt_residual_is_no_smaller_elsewhere() -> None:
    beta = minimum_potential(NOTEBOOK, 0.1)
    assert kkt_residual(beta, 0.1, NOTEBOOK.X) < 1e-9
    null = np.linalg.svd(NOTEBOOK.X)[2][-1]
    assert kkt_residual(beta + 0.1 * null, 0.1, NOTEBOOK.X) > 1e-3


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), [0.1, 0.2]])
def test_an_alpha_that_is_not_positive_is_refused(alpha) -> None:
    with pytest.raises(InputError, match="alpha must be a positive number or 30 of them"):
        minimum_potential(NOTEBOOK, alpha)
    with pytest.raises(InputError, match="alpha must be a positive number or 30 of them"):
        kkt_residual(np.ones(30), alpha, NOTEBOOK.X)
    with pytest.raises(InputError, match="alpha must be a positive number or 30 of them"):
        potential(np.ones(30), alpha)


def test_training_by_name_is_the_plan_of_one_phase() -> None:
    one = train(NOTEBOOK, "1-sam", gamma=0.1, alpha=0.2, rho=0.1, steps=30, balanced=True)
    other = Plan((Phase("1-sam", 0.1, 30, 0.1),), 0.2, balanced=True).run(NOTEBOOK)
    np.testing.assert_array_equal(one.u, other.u)
