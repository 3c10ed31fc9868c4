"""Where each ascent climbs, by formula, and where there is nowhere to climb."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland import L2, SAM, ClippedUnnormalized, Unnormalized, sam_gradient
from lowland.sam import Ascent, AscentStep

from .naive import identity, mlp, norm, regression, relative_error, squared, tensors

modest = settings(max_examples=40, deadline=None)
ASCENTS = [L2(), Unnormalized(), ClippedUnnormalized()]


def step_of(g, *, e=None, rho=0.5, size=None):
    w = [torch.zeros_like(t) for t in g]
    return AscentStep(w, e, g, norm(g), rho if size is None else size, rho)


@modest
@given(st.integers(0, 99), st.floats(1e-3, 10.0))
def test_first_l2_step_is_along_the_gradient_with_length_rho(seed, rho):
    g = tensors(seed, (2, 3), (4,))
    e = L2()(step_of(g, rho=rho))
    assert relative_error(e, [rho * t / norm(g) for t in g]) < 1e-14
    assert norm(e) == pytest.approx(rho, rel=1e-14)


@modest
@given(st.integers(0, 99), st.floats(1e-3, 10.0))
def test_unnormalized_step_is_rho_times_the_gradient_however_long(seed, rho):
    g = tensors(seed, (2, 3), (4,))
    assert relative_error(Unnormalized()(step_of(g, rho=rho)), [rho * t for t in g]) < 1e-15


@modest
@given(st.integers(0, 99), st.floats(1e-2, 1e2))
def test_clipped_step_is_unnormalized_inside_the_ball_and_l2_outside(seed, length):
    g = tensors(seed, (2, 3), (4,))
    g = [t * (length / norm(g)) for t in g]
    e = ClippedUnnormalized()(step_of(g, rho=0.7))
    expected = [0.7 * t * min(1.0, 1.0 / length) for t in g]
    assert relative_error(e, expected) < 1e-14


@modest
@given(st.sampled_from([L2(), ClippedUnnormalized()]), st.integers(0, 99), st.floats(0.1, 5.0))
def test_further_steps_are_projected_onto_the_ball(ascent, seed, size):
    e, g = tensors(seed, (2, 3), (4,)), tensors(seed + 1, (2, 3), (4,))
    e = [t * (0.5 / norm(e)) for t in e]
    found = ascent(step_of(g, e=e, rho=0.5, size=size))
    along = size / norm(g) if isinstance(ascent, L2) else size
    moved = [a + along * b for a, b in zip(e, g, strict=True)]
    assert relative_error(found, [t * min(1.0, 0.5 / norm(moved)) for t in moved]) < 1e-13


def test_further_unnormalized_steps_add_up():
    e, g = tensors(0, (2, 3), (4,)), tensors(1, (2, 3), (4,))
    found = Unnormalized()(step_of(g, e=e, rho=0.5, size=3.0))
    assert relative_error(found, [a + 3.0 * b for a, b in zip(e, g, strict=True)]) < 1e-15


def test_first_l2_step_above_the_radius_stays_in_the_ball():
    g = tensors(0, (2, 3), (4,))
    assert norm(L2()(step_of(g, rho=0.5, size=2.0))) == pytest.approx(0.5, rel=1e-14)
    assert norm(L2()(step_of(g, rho=0.5, size=0.2))) == pytest.approx(0.2, rel=1e-14)


@pytest.mark.parametrize("ascent", ASCENTS)
def test_steps_do_not_write_to_what_they_are_given(ascent):
    e, g = tensors(0, (2, 3), (4,)), tensors(1, (2, 3), (4,))
    before = identity([*e, *g])
    found = ascent(step_of(g, e=e))
    found[0].zero_()
    assert identity([*e, *g]) == before


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("m", [1, 2, None])
def test_zero_gradient_climbs_nowhere_and_stays_zero(ascent, m):
    a, b = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    calls = []

    def loss(x):
        calls.append(len(x))
        return (a.square().sum() + b.square().sum()) * x.mean()

    result = sam_gradient(loss, [a, b], (torch.ones(4),), rho=0.5, m=m, ascent=ascent, diagnostics=True)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in result.gradients)
    assert not result.diagnostics.climbed.any()
    assert not result.diagnostics.perturbation_norm.any()
    assert torch.equal(result.diagnostics.loss, result.diagnostics.perturbed_loss)
    assert sum(calls) == 4


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("size", [1e-40, 1e-44])
def test_subnormal_float32_gradients_stay_finite(ascent, steps, size):
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    result = sam_gradient(
        lambda x: size * (a.sum() + b.sum()) + 0.0 * x.sum(),
        [a, b],
        (torch.zeros(4),),
        rho=0.5,
        steps=steps,
        ascent=ascent,
        diagnostics=True,
    )
    assert all(torch.equal(g, torch.full_like(g, size)) for g in result.gradients)
    assert result.diagnostics.perturbation_norm.isfinite().all()
    assert a.tolist() == [1.0, 1.0, 1.0]


def test_climb_that_reaches_a_zero_gradient_stays_there():
    a, b = (torch.nn.Parameter(torch.tensor([-0.3], dtype=torch.float64)) for _ in range(2))
    points = []

    def loss(x):  # a plateau of height 1 from a = b = -0.1 on
        points.append(a.item())
        rise = 1 - (0.1 + a).clamp(max=0).square().sum() - (0.1 + b).clamp(max=0).square().sum()
        return rise + 0.0 * x.sum()

    found = sam_gradient(loss, [a, b], (torch.zeros(2),), rho=0.3 * math.sqrt(2), steps=3).gradients
    assert points == pytest.approx([-0.3, 0.0, 0.0, 0.0], abs=1e-15)
    assert [g.item() for g in found] == [0.0, 0.0]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("m", [1, 2, None])
def test_group_with_a_non_finite_gradient_is_not_climbed_and_shows(bad, ascent, m):
    module, (x, y) = mlp(), regression(examples=4)
    x[0, 0] = bad
    before, seen = identity(module), []

    def loss(x, y):
        seen.append((x.isfinite().all().item(), identity(module) == before))
        return (module[0](x)[:, 0].square()).mean() + squared(module, x.nan_to_num(0, 0, 0), y)

    sam = SAM(module, rho=0.5, m=m, ascent=ascent, diagnostics=True)
    sam.backward(loss, x, y)
    assert identity(module) == before
    assert not all(p.grad.isfinite().all() for p in module.parameters())
    assert [s for s in seen if not s[0]] == [(False, True)], "one pass only, at the unperturbed weights"
    groups = 1 if m is None else 4 // m
    assert sam.last_diagnostics.climbed.tolist() == [False] + [True] * (groups - 1)
    assert len(seen) == 1 + 2 * (groups - 1)


def test_non_finite_gradient_in_the_second_step_ends_the_climb_and_shows():
    a, b = torch.nn.Parameter(torch.tensor([0.3])), torch.nn.Parameter(torch.tensor([0.4]))
    before, calls = identity([a, b]), []

    def loss(x):
        calls.append(None)
        value = 0.5 * (a.square().sum() + b.square().sum()) + 0.0 * x.sum()
        return value * float("inf") if len(calls) == 2 else value

    found = sam_gradient(loss, [a, b], (torch.zeros(2),), rho=0.1, steps=3, diagnostics=True)
    assert identity([a, b]) == before
    assert len(calls) == 2
    assert not any(g.isfinite().all() for g in found.gradients)
    assert found.diagnostics.climbed.tolist() == [False]


def test_non_finite_gradient_of_the_climbs_own_batch_shows():
    a, b = torch.nn.Parameter(torch.tensor([0.3])), torch.nn.Parameter(torch.tensor([0.4]))
    before = identity([a, b])
    previous = torch.tensor([float("nan"), 1.0])
    found = sam_gradient(
        lambda x: (a.square().sum() + b.square().sum()) * x.mean(),
        [a, b],
        (torch.ones(2),),
        rho=0.1,
        m=1,
        ascent_batch=(previous,),
        diagnostics=True,
    )
    assert identity([a, b]) == before
    assert not any(g.isfinite().all() for g in found.gradients)
    assert found.loss.item() == pytest.approx(0.25)
    assert found.diagnostics.climbed.tolist() == [False, True]


def test_losses_are_equal_where_the_climbs_own_batch_stops_the_climb():
    a, b = torch.nn.Parameter(torch.tensor([0.0])), torch.nn.Parameter(torch.tensor([0.4]))
    found = sam_gradient(  # sqrt at 0: a finite loss with an infinite gradient
        lambda x: (a.abs() * x).clamp(min=0).sqrt().mean() + b.sum() * (2 - x.mean()),
        [a, b],
        (torch.zeros(2),),
        rho=0.1,
        ascent_batch=(torch.ones(2),),
        diagnostics=True,
    ).diagnostics
    assert found.climbed.tolist() == [False]
    assert torch.equal(found.perturbed_loss, found.loss)


def test_an_ascent_of_the_users_own_is_followed():
    class Sign:
        def __call__(self, step):
            return [step.rho * g.sign() for g in step.g]

    assert isinstance(Sign(), Ascent)
    module, batch = mlp(), regression()
    params = list(module.parameters())
    loss = functools.partial(squared, module)
    found = sam_gradient(loss, params, batch, rho=0.1, ascent=Sign()).gradients
    g = torch.autograd.grad(loss(*batch), params)
    start = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, t in zip(params, g, strict=True):
            p += 0.1 * t.sign()
    expected = torch.autograd.grad(loss(*batch), params)
    with torch.no_grad():
        for p, s in zip(params, start, strict=True):
            p.copy_(s)
    assert relative_error(found, expected) < 1e-14


def test_ascent_is_told_the_weights_the_unscaled_gradient_and_its_own_progress():
    module, batch, told = mlp(), regression(), []

    class Spy(L2):
        def __call__(self, step):
            told.append(step)
            return super().__call__(step)

    params = list(module.parameters())
    loss = functools.partial(squared, module)
    sam_gradient(loss, params, batch, rho=0.4, steps=2, step_size=0.25, scale=64.0, ascent=Spy())
    assert [step.rho for step in told] == [0.4, 0.4]
    assert [step.size for step in told] == pytest.approx([0.1, 0.1])
    assert told[0].e is None
    assert norm(told[1].e) == pytest.approx(0.1)
    g = torch.autograd.grad(loss(*batch), params)
    assert relative_error(told[0].g, list(g)) < 1e-14
    assert told[0].norm == pytest.approx(norm(list(g)), rel=1e-14)
    assert all(a is b for a, b in zip(told[0].w, params, strict=True))


class StopsAfterOne:
    """Its second step has nowhere to climb, in some groups or in all."""

    def __init__(self, stops=lambda _: True):
        self.stops = stops

    def __call__(self, step):
        if step.e is not None and self.stops(step.g[0].sum()):
            return None
        e = [0.0] * len(step.g) if step.e is None else step.e
        return [a + (step.size / step.norm) * g for a, g in zip(e, step.g, strict=True)]


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("m", [None, 3])
def test_a_perturbation_stays_what_it_was_where_a_later_step_has_nowhere_to_climb(engine, m):
    net, batch = mlp(), regression()
    params, loss = list(net.parameters()), functools.partial(squared, net)

    def found(ascent, steps):
        return sam_gradient(
            loss, params, batch, rho=0.4, m=m, ascent=ascent, steps=steps, engine=engine
        ).gradients

    one, two = found(StopsAfterOne(), 1), found(StopsAfterOne(lambda _: False), 2)
    assert relative_error(found(StopsAfterOne(), 3), one) < 1e-13
    assert relative_error(two, one) > 1e-3
    assert relative_error(found(StopsAfterOne(), 3), found(L2(), 1)) < 1e-13
