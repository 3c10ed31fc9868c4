"""The dynamics against the original's numbers, the formulas, and lowland's own SAM."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland import L2, Unnormalized, sam_gradient
from lowland.diagonal import Phase, Plan, Problem, logged_iterations, sparse_regression, sweep, train
from lowland.errors import InputError

from .naive import descend, losses

NOTEBOOK = sparse_regression()
METHODS = ("gd", "n-sam", "1-sam", "m-sam")


def original(method, rho, *, gamma=1 / 6, alpha=0.1, kernel="in order"):
    return train(
        NOTEBOOK, method, gamma=gamma, alpha=alpha, rho=rho, rho_convention="original", kernel=kernel
    )


@pytest.mark.parametrize(
    ("method", "rho", "test", "train_loss"),
    [
        ("gd", 0.0, 0.015056044189449159, 9.963e-9),
        ("n-sam", 0.01, 0.015143589149560101, 1.002e-8),
        ("n-sam", 0.03, 0.01532189739609112, 1.013e-8),
        ("n-sam", 0.1, 0.01598195225147282, 1.050e-8),
        ("n-sam", 0.3, 0.018241642036376265, 1.148e-8),
        ("n-sam", 1.0, 0.03606494489010675, 9.506e-9),
    ],
)
def test_cell_1_of_the_notebook(method, rho, test, train_loss) -> None:
    result = original(method, rho)
    np.testing.assert_allclose(result.test_loss[-1], test, rtol=1e-9)
    np.testing.assert_allclose(result.train_loss[-1], train_loss, rtol=5e-4)


@pytest.mark.parametrize(
    ("method", "rho", "test", "train_loss"),
    [
        ("gd", 0.0, 0.0006337885714222886, 3.791e-7),
        ("1-sam", 0.01, 0.0004663830742908966, 3.171e-7),
        ("1-sam", 0.03, 0.00023853572282255735, 2.242e-7),
        ("1-sam", 0.1, 1.5396958089444108e-05, 2.263e-7),
        ("1-sam", 0.3, 0.024183218285324055, 1.114e-2),
    ],
)
def test_cell_2_of_the_notebook(method, rho, test, train_loss) -> None:
    result = original(method, rho, alpha=0.02)
    np.testing.assert_allclose(result.test_loss[-1], test, rtol=1e-9)
    np.testing.assert_allclose(result.train_loss[-1], train_loss, rtol=5e-4)


ITERATIONS = [0, 10, 50, 100, 200, 300, 499, 1000, 2000, 5000, 10000]
CURVES = {
    ("gd", 0.0, 0.1): (
        [
            0.3008, 0.2758, 1.928e-2, 9.060e-3, 1.859e-3, 4.921e-4,
            1.281e-4, 1.654e-5, 4.005e-6, 2.608e-7, 9.963e-9,
        ],
        [
            0.4927, 0.4783, 0.1010, 5.648e-2, 3.382e-2, 2.307e-2,
            1.823e-2, 1.603e-2, 1.544e-2, 1.512e-2, 1.506e-2,
        ],
    ),
    ("n-sam", 0.1, 0.1): (
        [
            0.3008, 0.2769, 1.992e-2, 9.218e-3, 2.027e-3, 5.156e-4,
            1.310e-4, 1.682e-5, 4.173e-6, 2.800e-7, 1.050e-8,
        ],
        [
            0.4928, 0.4794, 0.1058, 5.856e-2, 3.595e-2, 2.439e-2,
            1.926e-2, 1.699e-2, 1.639e-2, 1.605e-2, 1.598e-2,
        ],
    ),
    ("n-sam", 1.0, 0.1): (
        [
            0.3008, 0.2845, 8.255e-2, 1.201e-2, 5.452e-3, 1.124e-3,
            1.487e-4, 2.470e-5, 7.229e-6, 5.879e-7, 9.506e-9,
        ],
        [
            0.4928, 0.4868, 0.3245, 0.1076, 7.459e-2, 5.324e-2,
            4.108e-2, 3.798e-2, 3.697e-2, 3.623e-2, 3.606e-2,
        ],
    ),
    ("gd", 0.0, 0.02): (
        [
            0.3028, 0.3017, 0.1364, 1.344e-2, 1.013e-2, 1.886e-3,
            2.381e-4, 5.404e-5, 1.327e-5, 1.672e-6, 3.791e-7,
        ],
        [
            0.4937, 0.4931, 0.2630, 4.070e-2, 2.914e-2, 1.138e-2,
            3.050e-3, 1.475e-3, 9.353e-4, 6.895e-4, 6.338e-4,
        ],
    ),
    ("1-sam", 0.1, 0.02): (
        [
            0.3028, 0.3023, 0.2845, 1.477e-2, 1.186e-2, 2.872e-3,
            1.153e-4, 2.245e-5, 7.289e-6, 1.213e-6, 2.263e-7,
        ],
        [
            0.4937, 0.4933, 0.4668, 2.289e-2, 2.021e-2, 8.904e-3,
            5.674e-4, 1.725e-4, 7.255e-5, 2.488e-5, 1.540e-5,
        ],
    ),
    ("1-sam", 0.3, 0.02): (
        [
            0.3028, 0.3027, 0.3027, 0.3027, 0.3022, 0.3001,
            0.2786, 0.2712, 1.446e-2, 1.209e-2, 1.114e-2,
        ],
        [
            0.4937, 0.4936, 0.4936, 0.4935, 0.4928, 0.4901,
            0.4624, 0.4527, 1.821e-2, 2.529e-2, 2.418e-2,
        ],
    ),
}  # fmt: skip
"""Training and test losses of the original's runs at ITERATIONS, to four digits."""


@pytest.mark.parametrize("run", CURVES, ids=str)
def test_curves_of_the_notebook(run) -> None:
    method, rho, alpha = run
    pieces = np.diff([-1, *ITERATIONS]).tolist()  # a phase ends, and is noted, at each of them
    phases = tuple(Phase(method, 1 / 6, steps, rho, rho_convention="original") for steps in pieces)
    result = Plan(phases, alpha).run(NOTEBOOK)
    at = np.searchsorted(result.iterations, ITERATIONS)
    np.testing.assert_array_equal(result.iterations[at], ITERATIONS)
    for values, wanted in zip((result.train_loss, result.test_loss), CURVES[run], strict=True):
        np.testing.assert_allclose(values[at], wanted, rtol=6e-4)


def test_one_sam_diverges_at_the_notebooks_largest_radius_and_says_so() -> None:
    result = original("1-sam", 0.9, gamma=0.5)
    assert np.isfinite(result.train_loss[0])
    assert np.isnan([result.train_loss[-1], result.test_loss[-1], result.beta[0]]).all()


def test_losses_are_noted_where_the_notebook_notes_them() -> None:
    wanted = set(range(500)) | set(np.logspace(0, 4, 201).astype(int).tolist())
    assert logged_iterations(10_001).tolist() == sorted(wanted)
    assert len(wanted) == 566


@pytest.mark.parametrize("steps", [1, 2, 10, 499, 500, 501, 12_345])
def test_the_last_step_is_always_noted(steps) -> None:
    logged = logged_iterations(steps)
    assert logged[-1] == steps - 1
    assert (np.diff(logged) > 0).all()


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.integers(1, 7),
    st.integers(1, 6),
    st.integers(1, 8),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_method_is_its_formula(method, n, d, m, normalized, derivative_only, seed) -> None:
    problem = sparse_regression(seed=seed, n=n, d=d, sparsity=1, n_test=3)
    sizes = {"gd": 0, "n-sam": n, "1-sam": 1, "m-sam": min(m, n)}
    climbs = method != "gd"
    phase = Phase(
        method,
        gamma=0.05,
        steps=6,
        rho=0.2 if climbs else 0.0,
        m=m if method == "m-sam" else None,
        normalized=normalized and climbs,
        derivative_only=derivative_only and climbs,
    )
    result = Plan((phase,), alpha=0.3).run(problem)
    u, v, exponent = descend(
        problem,
        m=sizes[method],
        gamma=0.05,
        rho=0.2,
        steps=6,
        alpha=0.3,
        normalized=normalized,
        derivative_only=derivative_only,
    )
    np.testing.assert_allclose(result.u, u, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(result.v, v, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(result.exponent, exponent, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        [result.train_loss[-1], result.test_loss[-1]], losses(problem, u, v), rtol=1e-9, atol=1e-28
    )


@pytest.mark.parametrize("m", [1, 3, 20])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_step_is_that_of_lowlands_sam(m, normalized) -> None:
    """Another implementation: :func:`lowland.sam_gradient` on the same loss."""
    start = np.random.default_rng(0).standard_normal((2, 30))
    u, v = (torch.tensor(row, requires_grad=True) for row in start)
    X, y = torch.tensor(NOTEBOOK.X), torch.tensor(NOTEBOOK.y)
    found = sam_gradient(
        lambda x, y: 0.5 * (x @ (u * v) - y) ** 2,
        [u, v],
        (X, y),
        rho=0.3,
        m=m,
        ascent=L2() if normalized else Unnormalized(),
        engine="loop",
    )
    phase = Phase("m-sam", gamma=0.1, steps=1, rho=0.3, m=m, normalized=normalized)
    result = _from(NOTEBOOK, start, phase)
    np.testing.assert_allclose(result.u, start[0] - 0.1 * found.gradients[0].numpy(), rtol=1e-12)
    np.testing.assert_allclose(result.v, start[1] - 0.1 * found.gradients[1].numpy(), rtol=1e-12)


def _from(problem, start, *phases):
    """A run from other weights than u = alpha, v = 0."""

    class From(Plan):
        def start(self, d):  # noqa: ARG002
            return start[0].copy(), start[1].copy()

    return From(phases).run(problem)


@given(st.integers(1, 9), st.floats(0.01, 0.5), st.booleans(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_m_of_n_is_n_sam_and_of_one_is_1_sam_and_no_radius_is_gd(n, rho, normalized, seed) -> None:
    problem = sparse_regression(seed=seed, n=n, d=5, sparsity=2, n_test=2)

    def weights(method, rho, m=None):
        phase = Phase(method, 0.05, 20, rho, m, normalized=normalized and rho > 0)
        result = Plan((phase,)).run(problem)
        return np.concatenate([result.u, result.v])

    close = {"rtol": 1e-10, "atol": 1e-14}
    np.testing.assert_allclose(weights("m-sam", rho, n), weights("n-sam", rho), **close)
    np.testing.assert_allclose(weights("m-sam", rho, 10 * n), weights("n-sam", rho), **close)
    np.testing.assert_allclose(weights("m-sam", rho, 1), weights("1-sam", rho), **close)
    for method, m in (("n-sam", None), ("1-sam", None), ("m-sam", 2)):
        np.testing.assert_allclose(weights(method, 0.0, m), weights("gd", 0.0), **close)


def test_the_original_convention_doubles_the_radius_of_1_sam_and_of_no_other() -> None:
    def u(method, rho, convention, m=None):
        return train(NOTEBOOK, method, gamma=0.1, rho=rho, steps=30, rho_convention=convention, m=m).u

    np.testing.assert_array_equal(u("1-sam", 0.1, "original"), u("1-sam", 0.2, "consistent"))
    np.testing.assert_array_equal(u("m-sam", 0.1, "original", 1), u("1-sam", 0.2, "consistent"))
    np.testing.assert_array_equal(u("n-sam", 0.1, "original"), u("n-sam", 0.1, "consistent"))
    np.testing.assert_array_equal(u("m-sam", 0.1, "original", 4), u("m-sam", 0.1, "consistent", 4))


def test_labels_say_which_convention_a_radius_has() -> None:
    assert Phase("1-sam", 0.1, rho=0.1, rho_convention="original").label == "1-SAM, ρ = 0.1 [2ρ]"
    assert Phase("1-sam", 0.1, rho=0.1).label == "1-SAM, ρ = 0.1"
    assert Phase("n-sam", 0.1, rho=0.1, rho_convention="original").label == "n-SAM, ρ = 0.1"
    assert Phase("m-sam", 0.1, rho=0.1, m=2, rho_convention="original").label == "2-SAM, ρ = 0.1"
    plan = Plan((Phase("gd", 0.1), Phase("1-sam", 0.1, rho=10.0)))
    assert plan.label == "GD → 1-SAM, ρ = 10"


def test_the_algebraic_kernel_agrees_to_rounding_and_reports_its_deviation() -> None:
    """Where 1-SAM is not chaotic; at ρ = 0.3 it is, and only the course is compared."""
    for rho, alpha in ((0.01, 0.02), (0.03, 0.1), (0.1, 0.02)):
        strict, fast = (
            original("1-sam", rho, alpha=alpha),
            original("1-sam", rho, alpha=alpha, kernel="algebraic"),
        )
        np.testing.assert_allclose(fast.test_loss, strict.test_loss, rtol=1e-9)
        np.testing.assert_allclose(fast.train_loss, strict.train_loss, rtol=1e-9)
        np.testing.assert_allclose(fast.exponent, strict.exponent, rtol=1e-9)
        np.testing.assert_allclose(fast.area, strict.area, rtol=1e-9)
        assert (fast.test_loss != strict.test_loss).any()  # it is another kernel
    strict, fast = original("1-sam", 0.3, alpha=0.02), original("1-sam", 0.3, alpha=0.02, kernel="algebraic")
    np.testing.assert_allclose(fast.test_loss[:500], strict.test_loss[:500], rtol=1e-6)
    assert np.isnan(original("1-sam", 0.9, gamma=0.5, kernel="algebraic").test_loss[-1])


@pytest.mark.parametrize(("method", "rho"), [("gd", 0.0), ("n-sam", 0.0), ("n-sam", 0.3), ("1-sam", 0.05)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (7, 17), (40, 30)])
def test_the_algebraic_kernel_is_exact_for_every_shape(method, rho, shape) -> None:
    problem = sparse_regression(seed=1, n=shape[0], d=shape[1], sparsity=1, n_test=50)
    plan = Plan((Phase(method, 0.02, 60, rho), Phase(method, 0.01, 30, rho)), 0.2)
    strict, fast = plan.run(problem), dataclasses.replace(plan, kernel="algebraic").run(problem)
    for name in ("u", "v", "train_loss", "test_loss", "area", "exponent"):
        np.testing.assert_allclose(getattr(fast, name), getattr(strict, name), rtol=1e-10, atol=1e-15)


def test_the_algebraic_kernel_runs_other_methods_in_order() -> None:
    for options in (
        {"method": "m-sam", "rho": 0.1, "m": 3},
        {"method": "1-sam", "rho": 0.1, "normalized": True},
    ):
        plan = Plan((Phase(gamma=0.1, steps=50, **options),))
        fast = dataclasses.replace(plan, kernel="algebraic").run(NOTEBOOK)
        np.testing.assert_array_equal(plan.run(NOTEBOOK).u, fast.u)


def test_sgd_takes_one_example_a_step_without_dividing_by_n() -> None:
    plan = Plan((Phase("sgd", gamma=0.01, steps=25),), alpha=0.2, seed=5)
    result = plan.run(NOTEBOOK)
    u, v = np.full(30, 0.2), np.zeros(30)
    for k in np.random.default_rng(5).integers(20, size=25):
        pull = (NOTEBOOK.X[k] @ (u * v) - NOTEBOOK.y[k]) * NOTEBOOK.X[k]
        u, v = u - 0.01 * pull * v, v - 0.01 * pull * u
    np.testing.assert_allclose(result.u, u, rtol=1e-12)
    np.testing.assert_allclose(result.v, v, rtol=1e-12, atol=1e-15)
    other = dataclasses.replace(plan, seed=6).run(NOTEBOOK)
    assert not np.allclose(other.v, v)


def test_weight_decay_and_balance_add_their_gradients() -> None:
    start = np.random.default_rng(1).standard_normal((2, 30))
    plain = _from(NOTEBOOK, start, Phase("gd", 0.01, 1))
    u, v = start
    decayed = _from(NOTEBOOK, start, Phase("gd", 0.01, 1, weight_decay=0.5))
    np.testing.assert_allclose(decayed.u, plain.u - 0.01 * 0.5 * u, rtol=1e-12)
    np.testing.assert_allclose(decayed.v, plain.v - 0.01 * 0.5 * v, rtol=1e-12)

    def imbalance(u, v):
        return 0.25 * np.sum((u**2 - v**2) ** 2)

    balanced = _from(NOTEBOOK, start, Phase("gd", 0.01, 1, balance=0.3))
    step = 1e-6
    for j in (0, 7):
        nudge = step * np.eye(30)[j]
        by_u = (imbalance(u + nudge, v) - imbalance(u - nudge, v)) / (2 * step)
        by_v = (imbalance(u, v + nudge) - imbalance(u, v - nudge)) / (2 * step)
        np.testing.assert_allclose((plain.u - balanced.u)[j] / (0.01 * 0.3), by_u, rtol=1e-6)
        np.testing.assert_allclose((plain.v - balanced.v)[j] / (0.01 * 0.3), by_v, rtol=1e-6)


def test_a_normalized_step_has_the_step_sizes_length() -> None:
    start = np.random.default_rng(2).standard_normal((2, 30))
    result = _from(NOTEBOOK, start, Phase("gd", 0.07, 1, normalized_step=True))
    moved = np.concatenate([result.u - start[0], result.v - start[1]])
    np.testing.assert_allclose(np.linalg.norm(moved), 0.07)
    plain = _from(NOTEBOOK, start, Phase("gd", 0.01, 1))
    direction = np.concatenate([plain.u - start[0], plain.v - start[1]])
    np.testing.assert_allclose(moved @ direction, 0.07 * np.linalg.norm(direction))


def test_the_step_size_halves_once_below_each_threshold() -> None:
    """Two thresholds that the first step is below: a quarter of the step size from the beginning."""
    halved = Plan((Phase("gd", 0.2, 40, thresholds=(0.9, 0.8)),)).run(NOTEBOOK)
    quarter = Plan((Phase("gd", 0.05, 40),)).run(NOTEBOOK)
    np.testing.assert_array_equal(halved.u, quarter.u)
    never = Plan((Phase("gd", 0.2, 40, thresholds=(1e-9,)),)).run(NOTEBOOK)
    np.testing.assert_array_equal(never.u, Plan((Phase("gd", 0.2, 40),)).run(NOTEBOOK).u)
    curve = Plan((Phase("gd", 0.2, 400),)).run(NOTEBOOK).train_loss
    level = float(curve[60:62].mean())  # crossed by the loss before step 62
    crossed = Plan((Phase("gd", 0.2, 400, thresholds=(level,)),)).run(NOTEBOOK).train_loss
    assert curve[61] < level < curve[60]
    np.testing.assert_array_equal(crossed[:62], curve[:62])
    assert crossed[62] != curve[62]


def test_phases_go_on_where_the_last_one_ended() -> None:
    whole = Plan((Phase("gd", 0.1, 300),)).run(NOTEBOOK)
    parts = Plan((Phase("gd", 0.1, 100), Phase("gd", 0.1, 200))).run(NOTEBOOK)
    np.testing.assert_array_equal(parts.u, whole.u)
    assert parts.iterations[-1] == whole.iterations[-1] == 299
    shared = np.isin(parts.iterations, whole.iterations)
    at = np.searchsorted(whole.iterations, parts.iterations[shared])
    np.testing.assert_array_equal(parts.train_loss[shared], whole.train_loss[at])
    np.testing.assert_allclose(parts.area[shared], whole.area[at], rtol=1e-13)
    switched = Plan((Phase("gd", 0.1, 100), Phase("1-sam", 0.02, 50, 0.4))).run(NOTEBOOK)
    middle = Plan((Phase("gd", 0.1, 100),)).run(NOTEBOOK)
    alone = _from(NOTEBOOK, (middle.u, middle.v), Phase("1-sam", 0.02, 50, 0.4))
    np.testing.assert_array_equal(switched.v, alone.v)
    np.testing.assert_array_equal(switched.train_loss[-50:], alone.train_loss)


def test_alpha_is_that_of_u_or_of_the_balanced_pair() -> None:
    u, v = Plan((Phase("gd", 0.1),), alpha=0.3).start(4)
    np.testing.assert_array_equal([u, v], [[0.3] * 4, [0.0] * 4])
    u, v = Plan((Phase("gd", 0.1),), alpha=[0.1, 0.2], balanced=True).start(2)
    np.testing.assert_allclose([(u + v) / 2, (u - v) / 2], [[0.1, 0.2]] * 2)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    phases = [Phase(method, 0.1, 500, rho) for method in ("n-sam", "1-sam") for rho in (0.01, 0.1, 0.3)]
    plans = [Plan((phase,)) for phase in phases] + [Plan((Phase("sgd", 0.01, 500),), seed=s) for s in (1, 2)]
    alone = sweep(NOTEBOOK, plans, threads=1)
    together = sweep(NOTEBOOK, plans, threads=4)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.u, other.u)
        np.testing.assert_array_equal(one.train_loss, other.train_loss)
    np.testing.assert_array_equal(alone[3].u, plans[3].run(NOTEBOOK).u)


def test_kernels_release_the_interpreter() -> None:
    """Another thread moves on while a kernel runs; with the lock held it could not."""
    import threading

    train(NOTEBOOK, "gd", gamma=0.01, steps=2)
    seen: list[float] = []
    done = threading.Event()
    thread = threading.Thread(target=lambda: (train(NOTEBOOK, "gd", gamma=0.01, steps=300_000), done.set()))
    thread.start()
    while not done.is_set():
        seen.append(time.monotonic())
        time.sleep(0.001)
    thread.join()
    assert len(seen) > 5


def test_without_a_test_set_the_test_loss_is_nan() -> None:
    result = train(Problem.of(NOTEBOOK.X, NOTEBOOK.y), "gd", gamma=0.1, steps=10)
    assert np.isnan(result.test_loss).all()
    assert np.isfinite(result.train_loss).all()


def test_support_errors_count_what_was_missed_and_what_was_made_up() -> None:
    result = original("gd", 0.0)
    beta = np.zeros(30)
    beta[[0, 2, 9]] = [0.9, 0.005, -0.3]
    faked = dataclasses.replace(result, u=beta, v=np.ones(30))
    assert faked.support_errors(NOTEBOOK) == (2, 1)
    assert faked.support_errors(NOTEBOOK, threshold=0.001) == (1, 1)
    assert faked.l1_norm == pytest.approx(1.205)
    with pytest.raises(InputError, match="support errors need the coefficients that made the targets"):
        faked.support_errors(Problem.of(NOTEBOOK.X, NOTEBOOK.y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "sam"}, "method must be one of gd, sgd, n-sam, 1-sam, m-sam, got 'sam'"),
        ({"gamma": 0.0}, "gamma must be positive and finite, got 0.0."),
        ({"gamma": float("nan")}, "gamma must be positive and finite, got nan."),
        ({"steps": 0}, "steps must be positive, got 0."),
        ({"method": "1-sam", "rho": -0.1}, "rho must be non-negative and finite, got -0.1."),
        ({"rho": 0.1}, "rho must be 0 for gd, got 0.1."),
        ({"m": 2}, "m must be given for m-sam and only for it, got 2 for gd."),
        ({"method": "m-sam"}, "m must be given for m-sam and only for it, got None for m-sam."),
        ({"method": "m-sam", "m": 0}, "m must be positive, got 0."),
        ({"thresholds": (0.1, 0.1)}, r"thresholds must fall, got \(0.1, 0.1\)."),
        ({"rho_convention": "new"}, "rho_convention must be one of consistent, original, got 'new'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_phases_that_cannot_be_run_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        Phase(**({"method": "gd", "gamma": 0.1} | arguments))


@pytest.mark.usefixtures("untyped")
def test_plans_that_cannot_be_run_are_refused() -> None:
    with pytest.raises(InputError, match="phases must hold at least one phase"):
        Plan(())
    with pytest.raises(InputError, match="kernel must be one of in order, algebraic, got 'fast'"):
        Plan((Phase("gd", 0.1),), kernel="fast")
    for alpha in (0.0, -1.0, float("inf"), [0.1, 0.2]):
        with pytest.raises(InputError, match="alpha must be a positive number or 30 of them"):
            Plan((Phase("gd", 0.1),), alpha=alpha).run(NOTEBOOK)
    with pytest.raises(InputError, match="threads must be positive"):
        sweep(NOTEBOOK, [Plan((Phase("gd", 0.1),))], threads=0)
