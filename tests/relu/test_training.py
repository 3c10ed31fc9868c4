"""Training against automatic differentiation, and the statistics of the original's protocol."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowland import sam_gradient
from lowland.errors import InputError
from lowland.relu import Network, Training, on_the_line, teacher_student, train

from .naive import descend, gradient

POINTS = on_the_line()
LOW, HIGH = float(POINTS.x.min()), float(POINTS.x.max())


def tensors(net: Network) -> list[torch.Tensor]:
    return [torch.tensor(array) for array in (net.w, net.b, net.a)]


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(1, 3),
    n=st.integers(1, 11),
    width=st.integers(1, 9),
    m=st.integers(1, 12),
    rho=st.sampled_from([0.0, 0.01, 0.05]),
    normalized=st.booleans(),
    linear=st.booleans(),
    seed=st.integers(0, 50),
)
def test_steps_are_those_of_automatic_differentiation(d, n, width, m, rho, normalized, linear, seed) -> None:
    problem = teacher_student(n=n, d=d, seed=seed, n_test=0)
    start = Network.initialized(width=width, d=d, scale=0.2, seed=seed)
    assume(np.abs(problem.x @ start.w + start.b).min() > 1e-12)  # at a kink the last digit decides which side
    training = Training(
        rho=rho,
        m=m if rho > 0 else None,
        gamma=1e-3,
        steps=6,
        schedule="linear" if linear else "constant",
        normalized=normalized,
        stop_loss=0.0,
    )
    result = train(problem, training, start=start)
    weights, losses = descend(
        tensors(start),
        torch.tensor(problem.x),
        torch.tensor(problem.y),
        gamma=1e-3,
        rho=rho,
        m=m if rho > 0 else n,
        normalized=normalized,
        batches=[list(range(n))] * 6,
        horizon=5 if linear else 0,
    )
    for mine, theirs in zip((result.network.w, result.network.b, result.network.a), weights, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-9, atol=1e-11)
    clean, perturbed = zip(*losses, strict=True)
    np.testing.assert_allclose(result.loss, np.array(clean)[result.iterations], rtol=1e-9, atol=1e-15)
    if rho > 0:
        np.testing.assert_allclose(result.perturbed_loss, np.array(perturbed)[result.iterations], rtol=1e-9)
    np.testing.assert_array_equal(start.w, Network.initialized(width=width, d=d, scale=0.2, seed=seed).w)


@pytest.mark.parametrize("m", [1, 5, 12])
def test_a_step_is_that_of_lowlands_sam(m) -> None:
    start = Network.initialized(seed=3)
    w, b, a = (t.requires_grad_() for t in tensors(start))
    found = sam_gradient(
        lambda x, y: 0.5 * (torch.relu(x @ w + b) @ a - y) ** 2,
        [w, b, a],
        (torch.tensor(POINTS.x), torch.tensor(POINTS.y)),
        rho=0.3,
        m=m,
        engine="loop",
    )
    training = Training(rho=0.3, m=m, steps=1, schedule="constant", stop_loss=0.0)
    result = train(POINTS, training, start=start)
    for mine, before, g in zip((result.network.w, result.network.a), (start.w, start.a),
                               (found.gradients[0], found.gradients[2]), strict=True):  # fmt: skip
        np.testing.assert_allclose(mine, before - 5e-5 * 12 * g.numpy(), rtol=1e-10)  # a sum, not a mean


@pytest.mark.slow
def test_erm_has_the_statistics_of_the_originals_protocol() -> None:
    """Five seeds of a re-implementation stopped after 4,633 to 463,840 steps, slopes varied by 564 to 814."""
    results = [train(POINTS, Training.original(0.0), seed=seed) for seed in range(5)]
    steps = [result.steps for result in results]
    assert all(2_000 < s < 1_000_000 for s in steps)
    assert all(9e-6 < result.final_loss(POINTS) <= 1e-5 for result in results)
    variations = [result.network.slope_variation(LOW, HIGH) for result in results]
    kinks = [result.network.active_kinks(LOW, HIGH) for result in results]
    assert 550 < np.mean(variations) < 760
    assert all(450 < v < 900 for v in variations)
    assert 35 < np.mean(kinks) < 47
    norms = np.array([result.network.norms() for result in results])
    assert ((norms > [33, 23.5]) & (norms < [49, 26])).all()


@pytest.mark.slow
def test_sam_has_the_statistics_of_the_originals_protocol() -> None:
    """There, slopes varied by 95 to 111 with 22 to 29 kinks; losses .0073 to .032, perturbed .08 to .35."""
    result = train(POINTS, Training.original(0.3), seed=0)
    assert result.steps == 1_000_001
    assert 0.003 < result.final_loss(POINTS) < 0.05
    assert 0.03 < result.perturbed_loss[-1] < 0.5
    assert 88 < result.network.slope_variation(LOW, HIGH) < 120
    assert 19 <= result.network.active_kinks(LOW, HIGH) <= 32
    a, w = result.network.norms()
    assert 9 < a < 28
    assert 15 < w < 19


def test_the_originals_protocol_treats_sam_otherwise_than_erm() -> None:
    assert Training.original(0.0) == Training(schedule="constant", stop_on="unperturbed")
    assert Training.original(0.3) == Training(rho=0.3, schedule="linear", stop_on="perturbed")


def test_training_stops_before_the_step_that_begins_at_a_small_loss() -> None:
    whole = train(POINTS, Training(schedule="constant", steps=3000, stop_loss=0.0))
    level = float(whole.loss[-40])
    stopped = train(POINTS, Training(schedule="constant", steps=3000, stop_loss=level))
    assert stopped.steps == whole.iterations[-40]
    assert stopped.final_loss(POINTS) == pytest.approx(level, rel=1e-12)
    assert stopped.loss[-1] == pytest.approx(level, rel=1e-12)


def test_the_perturbed_loss_stops_later_than_the_unperturbed() -> None:
    kind = {"rho": 0.05, "schedule": "constant", "steps": 4000, "stop_loss": 300.0}
    clean = train(POINTS, Training(**kind, stop_on="unperturbed"))
    perturbed = train(POINTS, Training(**kind, stop_on="perturbed"))
    assert clean.steps < perturbed.steps < 4000
    assert clean.loss[-1] <= 300.0 < clean.perturbed_loss[-1]
    assert perturbed.perturbed_loss[-1] <= 300.0


def test_batches_go_through_all_examples_in_every_epoch() -> None:
    from lowland.relu.training import _order

    rows = _order(7, 2, 5, seed=3)
    assert rows.shape == (7, 2)
    for epoch in (rows[0:2], rows[2:4], rows[4:6]):
        assert len(set(epoch.reshape(-1).tolist())) == 4  # one of five is left out
    assert not np.array_equal(_order(7, 2, 5, seed=4), rows)
    start = Network.initialized(width=4, scale=0.3)
    result = train(
        POINTS, Training(batch=2, steps=5, schedule="constant", stop_loss=0.0), start=start, seed=9
    )
    weights, _ = descend(
        tensors(start),
        torch.tensor(POINTS.x),
        torch.tensor(POINTS.y),
        gamma=5e-5,
        rho=0.0,
        m=12,
        normalized=False,
        batches=_order(5, 2, 12, seed=9).tolist(),
        horizon=0,
    )
    np.testing.assert_allclose(result.network.a, weights[2].numpy(), rtol=1e-12)


def test_losses_are_half_sums_of_squares_and_test_losses_half_means() -> None:
    problem = teacher_student(n=6, d=2, n_test=9)
    result = train(problem, Training(gamma=0.01, steps=3), start=Network.initialized(width=5, d=2, scale=0.1))
    weights = tensors(result.network)
    _, value = gradient(weights, torch.tensor(problem.x), torch.tensor(problem.y))
    assert result.final_loss(problem) == pytest.approx(value)
    _, value = gradient(weights, torch.tensor(problem.x_test), torch.tensor(problem.y_test))
    assert result.test_loss(problem) == pytest.approx(value / 9)
    assert np.isnan(result.test_loss(POINTS))


def test_divergence_is_nan() -> None:
    result = train(POINTS, Training(gamma=0.1, schedule="constant", steps=100))
    assert np.isnan(result.final_loss(POINTS))
    assert np.isnan(result.loss[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be non-negative and finite, got -0.1."),
        ({"stop_loss": float("nan")}, "stop_loss must be non-negative and finite, got nan."),
        ({"gamma": 0.0}, "gamma must be positive and finite, got 0.0."),
        ({"rho": 0.1, "m": 0}, "m must be positive, got 0."),
        ({"m": 2}, "m needs a climb, but rho is 0.0."),
        ({"steps": 1}, "steps must be at least 2 for a linear schedule, got 1."),
        ({"schedule": "cosine"}, "schedule must be one of constant, linear, got 'cosine'"),
        ({"stop_on": "both"}, "stop_on must be one of unperturbed, perturbed, got 'both'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_trained_is_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        Training(**options)


def test_data_and_network_must_fit() -> None:
    with pytest.raises(InputError, match="the network must have 1 inputs as the data"):
        train(POINTS, Training(), start=Network.initialized(d=2))
    with pytest.raises(InputError, match="batch must be at most the 12 examples"):
        train(POINTS, Training(batch=13))
