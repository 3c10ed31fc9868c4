"""Data of diagonal linear networks."""

import numpy as np
import pytest

from lowland.diagonal import Problem, sparse_regression
from lowland.errors import InputError


def test_the_defaults_are_the_notebooks_data() -> None:
    """Fingerprints of the original's arrays, from a run of its code."""
    problem = sparse_regression()
    X, X_test, y, y_test = problem.X, problem.X_test, problem.y, problem.y_test
    np.testing.assert_allclose(problem.theta_star[:3], [0.86573371, 0.15799741, 0.47491259], atol=5e-9)
    assert not problem.theta_star[3:].any()
    np.testing.assert_allclose(
        X[0, :5], [1.76405235, 0.40015721, 0.97873798, 2.2408932, 1.86755799], atol=5e-9
    )
    np.testing.assert_allclose(X[19, 29], -0.178589092, atol=5e-10)
    np.testing.assert_allclose(X_test[0, :3], [-1.55042935, 0.41731882, -0.94436849], atol=5e-9)
    np.testing.assert_allclose(X_test[999, 29], -1.55450334, atol=5e-9)
    np.testing.assert_allclose([X.sum(), X_test.sum()], [-32.9703176553, -112.1635896668], atol=5e-11)
    np.testing.assert_allclose(
        y[:5], [2.05523837, -0.22772872, -1.02515355, -0.05698831, 0.29381886], atol=5e-9
    )
    np.testing.assert_allclose(y_test[:3], [-1.72481614, -0.39219031, -0.79217401], atol=5e-9)
    np.testing.assert_allclose([np.sum(X**2) / 20, y @ y], [30.3011, 12.11554], rtol=5e-6)
    np.testing.assert_allclose(np.linalg.eigvalsh(X.T @ X / 20).max(), 3.83885, rtol=5e-6)


@pytest.mark.parametrize("stream", ["legacy", "modern"])
def test_targets_are_those_of_a_sparse_vector_of_norm_one(stream) -> None:
    problem = sparse_regression(seed=3, n=7, d=11, sparsity=4, n_test=5, stream=stream)
    assert (problem.n, problem.d, problem.X_test.shape) == (7, 11, (5, 11))
    assert problem.support.tolist() == [True] * 4 + [False] * 7
    assert (problem.theta_star[:4] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(problem.theta_star), 1.0)
    np.testing.assert_allclose(problem.y, problem.X @ problem.theta_star)
    np.testing.assert_allclose(problem.y_test, problem.X_test @ problem.theta_star)


def test_features_are_scaled_and_training_targets_noisy_on_request() -> None:
    plain = sparse_regression(seed=1, n=400, stream="modern")
    scaled = sparse_regression(seed=1, n=400, stream="modern", scaling=0.5)
    np.testing.assert_allclose(scaled.X, plain.X / np.sqrt(np.arange(1, 31)))
    np.testing.assert_allclose(scaled.X_test, plain.X_test / np.sqrt(np.arange(1, 31)))
    noisy = sparse_regression(seed=1, n=400, stream="modern", label_noise=0.3)
    assert abs((noisy.y - plain.y).std() - 0.3) < 0.03
    np.testing.assert_array_equal(noisy.y_test, plain.y_test)


def test_condensed_test_data_have_the_loss_of_all() -> None:
    for problem in (sparse_regression(), sparse_regression(n_test=20), sparse_regression(n_test=0)):
        X, y = problem.condensed_test
        assert len(y) == min(31, len(problem.y_test))
        for scale in (1.0, 1e-9):  # near theta_star the loss is tiny, and keeps its digits
            beta = problem.theta_star + scale * np.random.default_rng(0).standard_normal(30)
            whole = np.sum((problem.X_test @ beta - problem.y_test) ** 2) / max(len(problem.y_test), 1)
            few = np.sum((X @ beta - y) ** 2) / max(len(y), 1)
            np.testing.assert_allclose(few, whole, rtol=1e-6 if scale < 1 else 1e-12)


def test_data_of_ones_own_need_no_test_set() -> None:
    problem = Problem.of([[1, 2], [3, 4], [5, 6]], [1, 2, 3])
    assert (problem.n, problem.d, problem.X_test.shape, problem.support) == (3, 2, (0, 2), None)
    assert problem.X.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0."),
        ({"sparsity": 31}, "sparsity must be at most d = 30, got 31."),
        ({"label_noise": -1.0}, "label_noise must be non-negative, got -1.0."),
        ({"stream": "old"}, "stream must be one of legacy, modern, got 'old'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_drawn_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        sparse_regression(**arguments)


@pytest.mark.parametrize(
    ("X", "y", "X_test", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], None, r"X must be a matrix with rows and columns, got shape \(2,\)."),
        ([[1.0], [2.0]], [[1.0], [2.0]], None, r"y must be a vector, got shape \(2, 1\)."),
        ([[1.0], [2.0]], [1.0], None, "inputs and targets must be as many, got 2 and 1, 0 and 0."),
        ([[1.0], [float("nan")]], [1.0, 2.0], None, "X must be finite, got NaN or infinity."),
        ([[1.0], [2.0]], [1.0, 2.0], [[1.0]], "X_test and y_test must be given together, got one of them."),
    ],
)
def test_data_that_do_not_fit_are_refused(X, y, X_test, message) -> None:
    with pytest.raises(InputError, match=message):
        Problem.of(X, y, X_test=X_test)
