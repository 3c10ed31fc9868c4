"""Both passes inside one autocast block: the cached casts of the weights must not make SAM into ERM."""

import functools

import pytest
import torch

from lowland import perturbed, sam_gradient
from lowland.sam import magnitude_only

from .naive import added, identity, mlp, norm, regression, relative_error, rows, squared

RHO = 0.5
cast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def gradient_in_its_own_autocast(loss, params, batch):
    """A pass whose autocast block begins and ends with it, so that nothing can be cached before."""
    with cast():
        value = loss(*batch)
    return torch.autograd.grad(value, params)


def gradient_at(loss, params, batch, e):
    """The same with the weights really set to w + e."""
    start = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, value in zip(params, added(start, e), strict=True):
            p.copy_(value)
    found = gradient_in_its_own_autocast(loss, params, batch)
    with torch.no_grad():
        for p, value in zip(params, start, strict=True):
            p.copy_(value)
    return found


def naive(loss, params, batch, m, source=None):
    total = [torch.zeros_like(p) for p in params]
    for start in range(0, 8, m):
        group = rows(batch, start, start + m)
        climbed = group if source is None else rows(source, start, start + m)
        g = gradient_in_its_own_autocast(loss, params, climbed)
        e = [RHO * t / norm(g) for t in g]
        total = added(total, gradient_at(loss, params, group, e), len(group[0]) / 8)
    return total


@pytest.fixture
def problem():
    module = mlp(dtype=torch.float32)
    params = list(module.parameters())
    return functools.partial(squared, module), params, regression(examples=8, dtype=torch.float32)


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("another", [False, True])
def test_gradient_in_one_autocast_block_is_that_of_separate_blocks(problem, m, another):
    loss, params, batch = problem
    source = regression(9, examples=8, dtype=torch.float32) if another else None
    before = identity(params)
    with cast():
        found = sam_gradient(loss, params, batch, rho=RHO, m=m, ascent_batch=source, engine="loop").gradients
    assert identity(params) == before
    assert relative_error(found, naive(loss, params, batch, m, source)) < 1e-5
    erm = gradient_in_its_own_autocast(loss, params, batch)
    assert relative_error(found, erm) > 0.02


def test_casts_made_before_the_call_are_not_used_at_the_perturbed_weights(problem):
    loss, params, batch = problem
    with cast():
        loss(*batch)
        found = sam_gradient(loss, params, batch, rho=RHO).gradients
    assert relative_error(found, naive(loss, params, batch, 8)) < 1e-5


def test_casts_of_the_perturbed_weights_do_not_outlive_the_call(problem):
    loss, params, batch = problem
    with cast():
        value = loss(*batch)
        sam_gradient(loss, params, batch, rho=RHO, m=3)
        assert torch.equal(loss(*batch), value)


def test_several_steps_each_see_their_own_weights(problem):
    loss, params, batch = problem
    with cast():
        found = sam_gradient(loss, params, batch, rho=RHO, steps=2, step_size=0.5).gradients
    g = gradient_in_its_own_autocast(loss, params, batch)
    e = [0.5 * RHO * t / norm(g) for t in g]
    g = gradient_at(loss, params, batch, e)
    e = added(e, g, 0.5 * RHO / norm(g))
    assert norm(e) <= RHO
    assert relative_error(found, gradient_at(loss, params, batch, e)) < 1e-5


def test_combine_sees_two_different_gradients(problem):
    loss, params, batch = problem
    with cast():
        found = sam_gradient(loss, params, batch, rho=RHO, combine=magnitude_only).gradients
    g = gradient_in_its_own_autocast(loss, params, batch)
    factor = norm(naive(loss, params, batch, 8)) / norm(g)
    assert relative_error(found, [factor * t for t in g]) < 1e-5
    assert abs(factor - 1) > 0.01


def test_perturbed_inside_autocast_shows_in_the_output_and_is_gone_after_it(problem):
    loss, params, batch = problem
    with cast(), torch.no_grad():
        before = loss(*batch)
        with perturbed(params, [torch.full_like(p, 0.5) for p in params]):
            inside = loss(*batch)
        after = loss(*batch)
    assert torch.equal(before, after)
    assert (inside - before).abs() > 1e-2


def test_failed_pass_leaves_no_perturbed_cast_behind(problem):
    loss, params, batch = problem
    calls = []

    def fails(x, y):
        calls.append(None)
        value = loss(x, y)
        if len(calls) == 2:
            raise RuntimeError("stop")
        return value

    with cast():
        before = loss(*batch)
        with pytest.raises(RuntimeError, match="stop"):
            sam_gradient(fails, params, batch, rho=RHO)
        assert torch.equal(loss(*batch), before)


def test_autocast_inside_the_loss_is_the_same(problem):
    loss, params, batch = problem

    def casting(x, y):
        with cast():
            return loss(x, y)

    found = sam_gradient(casting, params, batch, rho=RHO, m=3).gradients
    assert relative_error(found, naive(loss, params, batch, 3)) < 1e-5
