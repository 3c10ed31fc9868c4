"""Average-case and one-step sharpness and gradient norms against closed forms."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.sam import Adaptive, MicroBatches
from lowland.sharpness import average_case, gradient_norms, one_step_sharpness
from lowland.sharpness.measurement import mean_over_groups

DOUBLE = torch.float64


def bowl(seed=0):
    """½ wᵀHw + bᵀw over two tensors; its Hessian, its slope, its weights and a loss of a batch of ones."""
    torch.manual_seed(seed)
    A = torch.randn(7, 7, dtype=DOUBLE)
    H, b = A @ A.T / 7 - 0.3 * torch.eye(7, dtype=DOUBLE), torch.randn(7, dtype=DOUBLE)
    u, v = (torch.randn(n, dtype=DOUBLE, requires_grad=True) for n in (3, 4))

    def loss(x):
        w = torch.cat([u, v])
        return (0.5 * w @ H @ w + b @ w) * x

    return H, b, [u, v], loss


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
@pytest.mark.parametrize("scaling", ["plain", "element", "filter"])
@pytest.mark.parametrize("rho", [0.01, 2.0])
def test_average_case_of_a_quadratic_is_half_the_scaled_trace(distribution, scaling, rho) -> None:
    H, _, params, loss = bowl()
    c = torch.ones(7, dtype=DOUBLE) if scaling == "plain" else torch.cat(params).detach().abs()
    wanted = 0.5 * rho**2 * (c * c * H.diag()).sum().item()
    found = average_case(
        loss,
        params,
        (torch.ones(3, dtype=DOUBLE),),
        rho=rho,
        distribution=distribution,
        scaling=scaling,
        samples=400,
    )
    assert abs(found.value - wanted) < 4 * found.stderr
    assert found.stderr < 0.3 * abs(wanted)
    assert found.examples == 3
    assert found.settings["samples"] == 400


def test_samples_are_drawn_until_the_standard_error_is_reached() -> None:
    _, _, params, loss = bowl()
    batch = (torch.ones(2, dtype=DOUBLE),)
    few = average_case(loss, params, batch, rho=0.1, samples=10)
    assert few.settings["samples"] == 10
    wanted = few.stderr / 3
    more = average_case(loss, params, batch, rho=0.1, samples=10, stderr=wanted)
    assert more.stderr <= wanted
    assert 40 < more.settings["samples"] < 600
    most = average_case(loss, params, batch, rho=0.1, samples=10, stderr=1e-12, max_samples=50)
    assert most.settings["samples"] == 50


def test_adaptive_sharpness_does_not_feel_a_rescaling_between_layers() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    x, y = torch.randn(9, 4, dtype=DOUBLE), torch.arange(9) % 3

    def measured(scaling):
        params = list(module.parameters())
        return average_case(
            lambda x, y: F.cross_entropy(module(x), y), params, (x, y), rho=0.2, scaling=scaling
        ).value

    plain, adaptive = measured("plain"), measured("element")
    with torch.no_grad():
        module[0].weight *= 10
        module[2].weight /= 10
    assert measured("element") == pytest.approx(adaptive, rel=1e-9)
    assert measured("plain") != pytest.approx(plain, rel=0.5)


def test_parts_count_by_their_examples_and_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    x, y = torch.randn(8, 4, dtype=DOUBLE), torch.arange(8) % 3
    before = {name: t.clone() for name, t in module.state_dict().items()}
    state = torch.get_rng_state()

    def loss(x, y):
        return F.cross_entropy(module(x), y, reduction="none")

    params = dict(module.named_parameters())
    module.eval()
    whole = average_case(loss, params, (x, y), rho=0.1, samples=4)
    parts = average_case(loss, params, MicroBatches([(x[:5], y[:5]), (x[5:], y[5:])]), rho=0.1, samples=4)
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    module.train()
    for measure in (average_case, one_step_sharpness):
        measure(loss, params, (x, y), rho=0.1)
    gradient_norms(loss, params, (x, y), m=2)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("rho", [0.01, 0.5])
def test_one_step_sharpness_of_a_quadratic_is_its_expansion(rho) -> None:
    H, b, params, loss = bowl()
    g = H @ torch.cat(params).detach() + b
    e = rho * g / g.norm()
    found = one_step_sharpness(loss, params, (torch.ones(4, dtype=DOUBLE),), rho=rho)
    assert found.value == pytest.approx((g @ e + 0.5 * e @ H @ e).item(), rel=1e-10)
    assert np.isnan(found.stderr)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("m", [1, 3, None])
def test_groups_have_their_own_climb_norm_and_share(engine, m) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 4, dtype=DOUBLE), torch.arange(7) % 3
    params = dict(module.named_parameters())

    def loss(x, y):
        return F.cross_entropy(module(x), y, reduction="none")

    def mean_at(values, rows):
        named = dict(zip(params, values, strict=True))
        return F.cross_entropy(torch.func.functional_call(module, named, (x[rows],)), y[rows])

    rises, norms, sizes = [], [], []
    for start in range(0, 7, m or 7):
        rows = slice(start, start + (m or 7))
        w = tuple(p.detach().requires_grad_() for p in params.values())
        g = torch.autograd.grad(mean_at(w, rows), w)
        norm = torch.sqrt(sum((t * t).sum() for t in g))
        climbed = [t + 0.1 * s / norm for t, s in zip(w, g, strict=True)]
        rises.append((mean_at(climbed, rows) - mean_at(w, rows)).item())
        norms.append(norm.item())
        sizes.append(len(y[rows]))
    found = one_step_sharpness(loss, params, (x, y), rho=0.1, m=m, engine=engine)
    np.testing.assert_allclose(found.groups, rises, rtol=1e-9)
    assert found.value == pytest.approx(np.average(rises, weights=sizes), rel=1e-9)
    slope = gradient_norms(loss, params, (x, y), m=m, engine=engine)
    np.testing.assert_allclose(slope.groups, norms, rtol=1e-9)
    assert slope.value == pytest.approx(np.average(norms, weights=sizes), rel=1e-9)
    assert (found.examples, slope.examples) == (7, 7)


def test_the_standard_error_of_equal_groups_is_the_usual_one() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    mean, error = mean_over_groups(values, torch.full((4,), 3.0))
    assert mean == 4.0
    assert error == pytest.approx(values.double().std().item() / 2)
    mean, error = mean_over_groups(values, torch.tensor([2.0, 2.0, 2.0, 1.0]))
    assert mean == pytest.approx((2 + 4 + 8 + 9) / 7)
    draws = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0])
    found = [mean_over_groups(row, sizes) for row in draws[:4000]]
    claimed = np.mean([error**2 for _, error in found])
    assert np.var([mean for mean, _ in found]) == pytest.approx(claimed, rel=0.15)


def test_a_row_says_all_that_was_decided() -> None:
    _, _, params, loss = bowl()
    row = average_case(loss, params, (torch.ones(2, dtype=DOUBLE),), rho=0.1, seed=3, samples=5).row()
    assert json.loads(json.dumps(row)) == row
    assert row["measure"] == "average case"
    assert (row["rho"], row["seed"], row["samples"], row["dtype"], row["examples"]) == (
        0.1,
        3,
        5,
        "float64",
        2,
    )
    row = one_step_sharpness(
        loss, params, (torch.ones(2, dtype=DOUBLE),), rho=0.1, m=1, ascent=Adaptive(scaled="*")
    ).row()
    assert row["ascent"].startswith("Adaptive")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *a: average_case(*a, rho=0.0), "rho must be positive and finite, got 0.0."),
        (
            lambda *a: average_case(*a, rho=0.1, samples=1),
            "samples must be from 2 to max_samples, got 1 and 1024.",
        ),
        (lambda *a: average_case(*a, rho=0.1, stderr=0.0), "stderr must be positive, got 0.0."),
        (
            lambda *a: average_case(*a, rho=0.1, distribution="t"),
            "distribution must be one of gaussian, uniform",
        ),
        (
            lambda *a: average_case(*a, rho=0.1, scaling="x"),
            "scaling must be one of plain, element, filter, shifted, got 'x'",
        ),
        (lambda *a: one_step_sharpness(*a, rho=-1.0), "rho must be positive and finite, got -1.0."),
        (lambda *a: one_step_sharpness(*a, rho=0.1, m=0), "m must be a positive whole number, got 0."),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_numbers_are_refused(call, message) -> None:
    _, _, params, loss = bowl()
    with pytest.raises(ValueError, match=message):
        call(loss, params, (torch.ones(2, dtype=DOUBLE),))
