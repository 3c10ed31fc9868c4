"""Many small jobs at once, and how they are given up."""

import threading

import numpy as np
import pytest

from lowland.diagonal import Phase, Plan, sparse_regression
from lowland.relu import Training, on_the_line, teacher_student, train
from lowland.runs import threads
from lowland.runs.threads import in_pieces, in_threads


@pytest.fixture
def small_pieces(monkeypatch):
    """A function that has pieces be of 37 steps or less from then on."""
    return lambda cost: monkeypatch.setattr(threads, "_PIECE", 37 * cost)


@pytest.mark.parametrize(("steps", "cost"), [(1, 1), (37, 1), (1000, 7), (5, 10**12), (100, 0)])
def test_pieces_are_all_steps_once_in_order(small_pieces, steps, cost) -> None:
    small_pieces(1)
    pieces = list(in_pieces(steps, cost=cost))
    assert [step for begin, end in pieces for step in range(begin, end)] == list(range(steps))


@pytest.mark.parametrize("kernel", ["in order", "algebraic"])
@pytest.mark.parametrize(
    "phase",
    [
        Phase("gd", 0.05, 1000),
        Phase("sgd", 0.02, 1000),
        Phase("n-sam", 0.05, 1000, 0.1),
        Phase("1-sam", 0.05, 1000, 0.1),
        Phase("m-sam", 0.05, 1000, 0.1, 3, thresholds=(0.1, 0.05, 0.01)),
    ],
    ids=lambda phase: phase.method,
)
def test_a_diagonal_network_in_pieces_is_the_same_bit_for_bit(small_pieces, phase, kernel) -> None:
    problem, plan = sparse_regression(n=6, d=9), Plan((phase, Phase("gd", 0.05, 200)), kernel=kernel)
    whole = plan.run(problem)
    small_pieces(problem.X.size)
    parts = plan.run(problem)
    for name in ("train_loss", "test_loss", "area", "u", "v", "exponent"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


@pytest.mark.parametrize(
    ("problem", "training"),
    [
        (on_the_line(), Training(rho=0.3, steps=1000, m=5)),
        (on_the_line(), Training(steps=1000, schedule="constant", stop_loss=3.0)),  # ends within a piece
        (teacher_student(), Training(rho=0.1, gamma=0.01, batch=3, steps=1000, stop_loss=0.0)),
    ],
)
def test_a_relu_network_in_pieces_is_the_same_bit_for_bit(small_pieces, problem, training) -> None:
    whole = train(problem, training)
    small_pieces((training.batch or problem.n) * problem.d * 100)
    parts = train(problem, training)
    assert parts.steps == whole.steps
    for name in ("iterations", "loss", "perturbed_loss"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    np.testing.assert_array_equal(parts.network.w, whole.network.w)


def test_results_come_in_the_order_of_the_jobs_and_each_end_is_told() -> None:
    first_may_end, told = threading.Event(), []

    def first() -> str:
        first_may_end.wait()
        return "first"

    def on_done(index: int) -> None:
        told.append(index)
        first_may_end.set()

    assert in_threads([first, lambda: "second"], threads=2, on_done=on_done) == ["first", "second"]
    assert told == [1, 0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_gives_up_the_jobs_that_run_and_leaves_out_the_others(error) -> None:
    running, ended, begun = threading.Event(), threading.Event(), threading.Event()

    def endless() -> None:
        try:
            for _ in in_pieces(10**15, cost=10**9):
                running.set()
        finally:
            ended.set()

    def on_wait() -> None:
        if running.is_set():
            raise error

    with pytest.raises(error):
        in_threads([endless, begun.set], threads=1, on_wait=on_wait)
    assert ended.wait(60)
    assert not begun.is_set()


def test_what_a_job_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads([lambda: 1, lambda: 1 // 0], threads=1)
