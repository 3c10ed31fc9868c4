"""Accumulated calls, clipping, loss scaling, autocast and cached parametrizations."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, parametrizations, parametrize

from lowland import L2, SAM, ClippedUnnormalized, Unnormalized, perturbed, sam_gradient
from lowland.sam import MicroBatches, PreviousBatch, SurrogateGap

from .naive import (
    added,
    bits,
    identity,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    rows,
    seeded,
    squared,
)

ASCENTS = {"l2": L2(), "unnormalized": Unnormalized(), "clipped": ClippedUnnormalized()}


def grads(module):
    return [p.grad for p in module.parameters()]


def loss_of(module):
    return functools.partial(squared, module)


@pytest.mark.parametrize("m", [None, 3])
@pytest.mark.parametrize("ascent", ASCENTS)
def test_two_calls_at_half_scale_each_climb_by_themselves(m, ascent):
    module, batch = mlp(), regression(examples=8)
    halves = [rows(batch, 0, 4), rows(batch, 4, 8)]
    expected = [torch.zeros_like(p) for p in module.parameters()]
    for half in halves:
        found = naive_sam(module, squared, half, rho=0.4, m=m, l2=0.1, ascent=ascent).gradients
        expected = added(expected, found, 0.5)
    sam = SAM(module, rho=0.4, m=m, l2=0.1, ascent=ASCENTS[ascent])
    for half in halves:
        sam.backward(loss_of(module), *half, scale=0.5)
    assert relative_error(grads(module), expected) < 1e-12
    together = naive_sam(module, squared, batch, rho=0.4, m=None, l2=0.1, ascent=ascent).gradients
    assert relative_error(expected, together) > 1e-4
    assert sam.steps_done == 1


@pytest.mark.parametrize("kind", [float, torch.tensor, lambda s: torch.tensor(s, dtype=torch.float16)])
def test_scale_is_a_number_or_a_tensor(kind):
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=0.4).gradients
    SAM(module, rho=0.4).backward(loss_of(module), *batch, scale=kind(4.0))
    assert relative_error(grads(module), [4 * g for g in expected]) < 1e-12


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_acts_on_what_was_accumulated(accumulate):
    module, batch = mlp(), regression(examples=8)
    size = 8 // accumulate
    expected = naive_sam(module, squared, batch, rho=0.4, m=4).gradients
    sam = SAM(module, rho=0.4, m=4)
    for i in range(0, 8, size):
        sam.backward(loss_of(module), *rows(batch, i, i + size), scale=1 / accumulate)
    length = clip_grad_norm_(module.parameters(), 0.01)
    assert length.item() == pytest.approx(norm(expected), rel=1e-12)
    assert relative_error(grads(module), [g * 0.01 / norm(expected) for g in expected]) < 1e-3


def spied(module, scales):
    """The loss, which notes the gradient that its value receives in every pass."""

    def loss(x, y):
        value = squared(module, x, y)
        value.register_hook(lambda g: scales.append(g.item()))
        return value

    return loss


def scaler_of(scale=2.0**10):
    return torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize("way", ["scaler", "number"])
@pytest.mark.parametrize("steps", [1, 2])
def test_all_passes_are_scaled(way, steps):
    module, batch, scales, scaler = mlp(dtype=torch.float32), regression(dtype=torch.float32), [], scaler_of()
    sam = SAM(module, rho=0.4, m=4, steps=steps)
    sam.backward(spied(module, scales), *batch, scale=scaler if way == "scaler" else 2.0**10)
    assert scales == [2.0**10] * (2 * (steps + 1))


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("way", ["backward", "objective"])
def test_scaler_changes_no_climb(ascent, way):
    module, batch = mlp(dtype=torch.float32), regression(dtype=torch.float32)
    before = [p.detach().clone() for p in module.parameters()]
    expected = naive_sam(module, squared, batch, rho=0.4, m=3, l2=0.1, ascent=ascent).gradients
    optimizer, scaler = torch.optim.SGD(module.parameters(), lr=1.0), scaler_of()
    sam = SAM(module, rho=0.4, m=3, l2=0.1, ascent=ASCENTS[ascent])
    if way == "backward":
        sam.backward(loss_of(module), *batch, scale=scaler)
    else:
        scaler.scale(sam.objective(loss_of(module), *batch, scale=scaler)).backward()
    assert relative_error(grads(module), [2.0**10 * g for g in expected]) < 1e-5
    scaler.step(optimizer)
    scaler.update()
    moves = [a - b.detach() for a, b in zip(before, module.parameters(), strict=True)]
    assert relative_error(moves, expected) < 1e-5


def test_disabled_scaler_is_no_scale():
    module, batch = mlp(), regression()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    expected = naive_sam(module, squared, batch, rho=0.4).gradients
    SAM(module, rho=0.4).backward(loss_of(module), *batch, scale=scaler)
    assert relative_error(grads(module), expected) < 1e-12


def half_precision_on_cpu():
    """Whether this build of torch can autocast to float16 on a CPU."""
    try:
        with torch.autocast("cpu", dtype=torch.float16):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
    except RuntimeError:
        return False


@pytest.mark.skipif(not half_precision_on_cpu(), reason="torch has no float16 autocast on this CPU")
def test_float16_passes_keep_gradients_that_only_the_scale_makes_representable():
    """Gradients of 1e-9 are nothing in float16, times 2^15 they are something: in both passes."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 6), nn.Linear(6, 3)
    params = [*first.parameters(), *second.parameters()]
    x, y = regression(examples=4, dtype=torch.float32)

    def loss(x, y):
        return ((second(first(x).tanh()) - y).float().square().mean()) * 1e-8

    with torch.no_grad():
        start = [p.clone() for p in params]
    g = torch.autograd.grad(loss(x, y), params)
    with perturbed(params, [0.4 * t / norm(g) for t in g]):
        expected = torch.autograd.grad(loss(x, y), params)
    sam, seen = SAM(params, rho=0.4), []

    def in_half(x, y):
        seen.append(norm([p.detach() - s for p, s in zip(params, start, strict=True)]))
        with torch.autocast("cpu", dtype=torch.float16):
            return loss(x, y)

    sam.backward(in_half, x, y, scale=2.0**15)
    assert relative_error([p.grad / 2.0**15 for p in params], expected) < 0.02
    assert seen == [0.0, pytest.approx(0.4, rel=1e-5)]


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
@pytest.mark.parametrize("ascent", ASCENTS)
def test_overflow_in_any_pass_skips_the_step_and_leaves_the_weights(failing, ascent):
    module, batch, calls = mlp(dtype=torch.float32), regression(dtype=torch.float32), []

    def loss(x, y):
        calls.append(None)
        return squared(module, x, y) * (1e36 if len(calls) == failing else 1.0)

    before = identity(module)
    scaler, optimizer = scaler_of(), torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    value = SAM(module, rho=0.4, m=4, ascent=ASCENTS[ascent]).backward(loss, *batch, scale=scaler)
    assert identity(module) == before
    assert not all(g.isfinite().all() for g in grads(module))
    scaler.unscale_(optimizer)
    clip_grad_norm_(module.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert identity(module) == before
    assert scaler.get_scale() == 2.0**9
    assert value.isfinite()


def test_overflow_is_over_with_the_next_step():
    """The scale shrinks until both passes fit; the gradient is then that without any scale."""
    module, batch = mlp(dtype=torch.float32), regression(dtype=torch.float32)
    expected = naive_sam(module, squared, batch, rho=0.4, ascent="unnormalized").gradients
    start = [p.detach().clone() for p in module.parameters()]
    scaler, optimizer = scaler_of(2.0**127), torch.optim.SGD(module.parameters(), lr=1.0)
    sam = SAM(module, rho=0.4, ascent=Unnormalized())
    for _ in range(8):
        optimizer.zero_grad()
        sam.backward(loss_of(module), *batch, scale=scaler)
        scaler.step(optimizer)
        scaler.update()
        if any((p != s).any() for p, s in zip(module.parameters(), start, strict=True)):
            break
    moves = [s - p.detach() for s, p in zip(start, module.parameters(), strict=True)]
    assert relative_error(moves, expected) < 1e-4
    assert scaler.get_scale() < 2.0**127


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_loss_that_uses_nothing_with_a_radius_keeps_its_gradient_at_any_scale(scale):
    used, idle = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.ones(3))
    found = sam_gradient(
        lambda x: used.square().sum() * x.mean(), [used, idle], (torch.ones(2),), rho=[0.0, 0.1], scale=scale
    ).gradients
    assert found[0].tolist() == [2 * scale, 4 * scale]
    assert found[1] is None


cast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("m", [2, None])
@pytest.mark.parametrize("parts", [1, 3])
def test_passes_in_one_bfloat16_context_use_the_perturbed_weights(m, parts):
    """Every output is that of the weights as they stood, run again in a context of its own."""
    module, seen = mlp(dtype=torch.float32), []
    x, y = regression(examples=6, dtype=torch.float32)

    def loss(x, y):
        out = module(x)
        seen.append((x, {k: p.detach().clone() for k, p in module.named_parameters()}, out.detach()))
        return (out.float() - y).square().mean()

    size = 6 // parts
    batch = MicroBatches([(x[i : i + size], y[i : i + size]) for i in range(0, 6, size)])
    before = identity(module)
    with cast():
        sam_gradient(loss, list(module.parameters()), batch, rho=0.5, m=m)
    moved = [norm([weights[k] - p.detach() for k, p in module.named_parameters()]) for _, weights, _ in seen]
    assert sorted(moved) == pytest.approx([0.0] * (len(seen) // 2) + [0.5] * (len(seen) // 2), rel=1e-5)
    for distance, (x, weights, out) in zip(moved, seen, strict=True):
        with cast():
            again = torch.func.functional_call(module, weights, (x,)).float()
        with cast():
            unmoved = module(x).float()
        assert out.dtype == torch.bfloat16
        assert relative_error([out.float()], [again]) < 0.005
        assert (relative_error([unmoved], [again]) > 0.05) == (distance > 0)
    assert identity(module) == before


def test_autocast_and_scaler_together_are_close_to_full_precision():
    module, batch = mlp(dtype=torch.float32), regression(dtype=torch.float32)
    expected = naive_sam(module, squared, batch, rho=0.4, m=3, ascent="unnormalized").gradients
    with cast():
        sam = SAM(module, rho=0.4, m=3, ascent=Unnormalized())
        sam.backward(loss_of(module), *batch, scale=scaler_of())
    assert relative_error([g / 2.0**10 for g in grads(module)], expected) < 0.03
    plain = naive_sam(module, squared, batch, rho=0.4, m=3).at_weights
    assert relative_error(expected, plain) > 0.1


class Symmetric(nn.Module):
    """A parametrization that saves what it is given, so that its graph cannot be used twice."""

    def forward(self, w):
        return w @ w.T.tanh()


def weight_norm():
    return seeded(
        nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 6)),
            nn.Tanh(),
            parametrizations.weight_norm(nn.Linear(6, 3)),
        )
    )


def custom():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    parametrize.register_parametrization(module[0], "weight", Symmetric(), unsafe=True)
    return seeded(module)


@pytest.mark.parametrize("model", [weight_norm, custom])
@pytest.mark.parametrize("options", [{}, {"m": 3}, {"m": 1}, {"m": 3, "steps": 2, "l2": 0.1}])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_cached_parametrizations_give_the_same_gradients(model, options, rho):
    module, batch = model(), regression()
    expected = naive_sam(module, squared, batch, rho=rho, **options)
    with parametrize.cached():
        squared(module, *batch)
        SAM(module, rho=rho, **options).backward(loss_of(module), *batch)
        assert parametrize._cache == {}
    assert relative_error(grads(module), expected.gradients) < 1e-12
    if rho:
        assert relative_error(expected.gradients, expected.at_weights) > 1e-3


@pytest.mark.parametrize("model", [weight_norm, custom])
@pytest.mark.parametrize("m", [2, None])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_parts_of_a_group_do_not_share_cached_parametrizations(model, m, rho):
    module, batch = model(), regression(examples=6)
    parts = MicroBatches([rows(batch, i, i + 3) for i in (0, 3)])
    expected = naive_sam(module, squared, batch, rho=rho, m=m)
    with parametrize.cached():
        SAM(module, rho=rho, m=m).backward(loss_of(module), parts)
    assert relative_error(grads(module), expected.gradients) < 1e-12


@pytest.mark.parametrize("options", [{"source": PreviousBatch()}, {"combine": SurrogateGap(0.3)}])
def test_cached_parametrizations_do_not_outlive_a_pass_of_other_climbs(options):
    found = []
    for caching in (True, False):
        module = weight_norm()
        sam = SAM(module, rho=0.4, m=3, **copy.deepcopy(options))
        for seed in (1, 2):
            with parametrize.cached() if caching else torch.enable_grad():
                sam.backward(loss_of(module), *regression(seed))
        found.append(grads(module))
    assert relative_error(*found) < 1e-13


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_cached_of_the_perturbed_weights(fails):
    module, batch, calls = weight_norm(), regression(), []

    def loss(x, y):
        calls.append(None)
        value = squared(module, x, y)
        if fails and len(calls) == 2:
            raise RuntimeError("stop")
        return value

    with parametrize.cached():
        before = squared(module, *batch)
        if fails:
            with pytest.raises(RuntimeError, match="stop"):
                SAM(module, rho=0.4).backward(loss, *batch)
        else:
            SAM(module, rho=0.4).backward(loss, *batch)
        assert bits(squared(module, *batch)) == bits(before)
    assert parametrize._cache == {}


def test_value_that_needs_no_gradient_leaves_no_cached_weights_without_one():
    """The pass that only evaluates the batch runs without gradients; its caches must not serve the next."""
    module, batch, other = weight_norm(), regression(1), regression(2)
    expected = naive_sam(module, squared, batch, rho=0.4, m=3, ascent_batch=other)
    with parametrize.cached():
        SAM(module, rho=0.4, m=3).backward(loss_of(module), *batch, ascent_batch=other)
    assert relative_error(grads(module), expected.gradients) < 1e-12
