"""Losses, weights and features of any size that float32 holds: only the scale of the answer is another."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.sharpness import (
    AutoPGD,
    ProjectedAscent,
    gradient_direction,
    hessian_trace,
    knn_error,
    normalized_logits,
    random_direction,
    suboptimality,
    unformed,
    worst_case,
    worst_case_grid,
)
from lowland.sharpness.vectors import Formed

SIZES = [2.0**-100, 2.0**-77, 2.0**77, 2.0**100]
"""From 1e-30 to 1e30; powers of two, which round nothing."""


def network(inputs=4, width=6):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 3))
    return module, (torch.randn(6, inputs), torch.arange(6) % 3)


def scaled_loss(module, size):
    return lambda x, y: size * F.cross_entropy(module(x), y, reduction="none")


OPTIONS = {
    "projected": {"search": ProjectedAscent(steps=5, step_size=0.4)},
    "element": {"search": ProjectedAscent(steps=5, step_size=0.4), "scaling": "element"},
    "auto-PGD": {"search": AutoPGD(steps=8), "restarts": 2},
    "linf": {"search": ProjectedAscent(steps=5), "norm": "linf"},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_loss_of_any_size_is_climbed_as_far(size, engine, options) -> None:
    module, batch = network()
    given = {"rho": 0.3, "m": 1, "engine": engine, **options}
    wanted = worst_case(scaled_loss(module, 1.0), list(module.parameters()), batch, **given)
    found = worst_case(scaled_loss(module, size), list(module.parameters()), batch, **given)
    assert wanted.groups.min() > 0.01
    np.testing.assert_allclose(found.groups / size, wanted.groups, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("search", [ProjectedAscent(steps=6, step_size=0.4), AutoPGD(steps=8)])
def test_climbs_that_are_kept_as_sums_of_gradients_are_as_far(size, search, monkeypatch) -> None:
    module, batch = network(60, 90)
    used = []
    original = unformed.Unformed.moves
    monkeypatch.setattr(unformed.Unformed, "moves", lambda self, v: used.append(v) or original(self, v))
    given = {"rho": [0.3, 2.0], "m": [1], "engine": "batched", "search": search}
    wanted = worst_case_grid(scaled_loss(module, 1.0), list(module.parameters()), batch, **given)
    found = worst_case_grid(scaled_loss(module, size), list(module.parameters()), batch, **given)
    assert used
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.groups / size, b.groups, rtol=1e-4)


def test_examples_of_all_sizes_are_climbed_at_once_each_as_far_as_alone() -> None:
    module, (x, y) = network(60, 90)
    sizes = torch.tensor([*SIZES, 1.0, 3.0])

    def loss(x, y, size):
        return size * F.cross_entropy(module(x), y, reduction="none")

    for engine in ("loop", "batched"):
        found = worst_case(loss, list(module.parameters()), (x, y, sizes), rho=0.3, m=1, engine=engine)
        alone = worst_case(scaled_loss(module, 1.0), list(module.parameters()), (x, y), rho=0.3, m=1)
        np.testing.assert_allclose(found.groups.double() / sizes, alone.groups, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_inputs_of_any_size_change_nothing_beside_weights_of_the_inverse(size, engine) -> None:
    module, (x, y) = network(60, 90)
    weight = module[0].weight
    given = {"m": 1, "engine": engine, "search": ProjectedAscent(steps=6, step_size=0.4)}
    wanted = worst_case(scaled_loss(module, 1.0), [weight], (x, y), rho=0.3, **given)
    with torch.no_grad():
        weight.div_(size)
    found = worst_case(scaled_loss(module, 1.0), [weight], (size * x, y), rho=0.3 / size, **given)
    assert wanted.groups.min() > 0.01
    np.testing.assert_allclose(found.groups, wanted.groups, rtol=1e-4)


def test_a_slope_that_is_not_finite_stops_its_own_step_only() -> None:
    module, (x, y) = network(60, 90)
    bias, edge = module[2].bias.detach().clone(), torch.tensor([9.0, 0.05, 9.0, 9.0, 0.05, 9.0])

    def loss(x, y, edge):  # beyond the edge it is low, and its slope is not a number
        root = (edge - (module[2].bias - bias).square().sum()).sqrt()
        return F.cross_entropy(module(x), y, reduction="none") + torch.nan_to_num(0.0 * root, nan=-10.0)

    params, given = list(module.parameters()), {"rho": 2.0, "m": 1, "search": AutoPGD(steps=12)}
    loop = worst_case(loss, params, (x, y, edge), engine="loop", **given).groups
    batched = worst_case(loss, params, (x, y, edge), engine="batched", **given).groups
    alone = worst_case(scaled_loss(module, 1.0), params, (x, y), engine="loop", **given).groups
    np.testing.assert_allclose(batched, loop, rtol=1e-4)
    np.testing.assert_allclose(loop[[0, 2, 3, 5]], alone[[0, 2, 3, 5]], rtol=1e-4)
    assert ((loop[[1, 4]] > 0.01) & (loop[[1, 4]] < 0.9 * alone[[1, 4]])).all()


@pytest.mark.parametrize("size", SIZES)
def test_norms_of_formed_vectors_are_those_of_float64(size) -> None:
    torch.manual_seed(0)
    v = [size * torch.randn(5, 7, 3), size * torch.randn(5, 4)]
    v[0][1], v[1][1] = 0.0, 0.0
    v[0][2] *= 0.0
    wanted = torch.cat([t.double().flatten(1) for t in v], dim=1).norm(dim=1)
    found = Formed([torch.zeros(7, 3), torch.zeros(4)], 5).norms(v)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert wanted[1] == 0.0


@pytest.mark.parametrize("size", SIZES)
def test_curvature_and_direction_of_a_loss_of_any_size_are_those_of_the_loss(size) -> None:
    module, batch = network()
    params = dict(module.named_parameters())
    for measure in (
        lambda loss, _: torch.cat([t.flatten() for t in gradient_direction(loss, params, batch).values()]),
        lambda loss, c: hessian_trace(loss, params, batch, products=9).value / c,
        lambda loss, _: suboptimality(loss, params, batch, rho=0.3, m=2, engine="loop").value,
    ):
        wanted, found = (measure(scaled_loss(module, c), c) for c in (1.0, size))
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_filters_of_any_size_have_directions_of_their_length(size) -> None:
    module, _ = network()
    with torch.no_grad():
        wanted = random_direction(module, seed=0)
        for p in module.parameters():
            p.mul_(size)
    found = random_direction(module, seed=0)
    assert all(torch.allclose(found[n] / size, wanted[n], rtol=1e-5) for n in wanted)
    assert wanted["0.weight"].abs().min() > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [12, 60])
def test_features_of_any_size_have_the_same_neighbours(size, count) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(count, 5), torch.arange(count) % 3
    train, test = (
        (features[: count // 2], labels[: count // 2]),
        (features[count // 2 :], labels[count // 2 :]),
    )
    wanted = knn_error(train, test, k=3)
    assert 0.0 < wanted < 1.0
    assert knn_error((size * train[0], train[1]), (size * test[0], test[1]), k=3) == wanted


@pytest.mark.parametrize("size", SIZES)
def test_logits_of_any_size_are_normalized(size) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5)
    torch.testing.assert_close(normalized_logits(size * logits), normalized_logits(logits))
    assert normalized_logits(size * logits).square().mean(1).tolist() == pytest.approx([1.0] * 4)
