"""``SAM.objective``, for trainers that call ``backward`` themselves, and who holds which memory."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowland import SAM, Unnormalized
from lowland.sam import DecoupledWeighted, MicroBatches, SurrogateGap
from lowland.sam.deposit import as_loss, deposit

from .naive import bits, identity, mlp, naive_sam, regression, relative_error, rows, squared, tensors


def grads(module):
    return [p.grad for p in module.parameters()]


def loss_of(module):
    return functools.partial(squared, module)


def two(shape_a=(3,), shape_b=(2,)):
    return [nn.Parameter(t) for t in tensors(0, shape_a, shape_b)]


@pytest.mark.parametrize("m", [1, 3, None])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_value_is_the_loss_and_its_backward_adds_the_gradient_of_the_naive_loop(m, rho):
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=rho, m=m, l2=0.1)
    value = SAM(module, rho=rho, m=m, l2=0.1).objective(loss_of(module), *batch)
    assert grads(module) == [None] * 4
    assert value.item() == pytest.approx(expected.loss, rel=1e-13)
    assert value.shape == ()
    assert value.requires_grad
    value.backward()
    assert relative_error(grads(module), expected.gradients) < 1e-12


def test_objective_deposits_what_backward_does_to_the_bit():
    one, other, batch = mlp(), mlp(), regression()
    SAM(one, rho=0.4, m=3).backward(loss_of(one), *batch)
    SAM(other, rho=0.4, m=3).objective(loss_of(other), *batch).backward()
    assert [bits(g) for g in grads(one)] == [bits(g) for g in grads(other)]


@settings(max_examples=15, deadline=None)
@given(st.floats(-1e3, 1e3).filter(lambda factor: abs(factor) > 1e-3), st.sampled_from([1.0, 1024.0]))
def test_outer_factor_multiplies_the_gradient_and_inner_scale_does_not(factor, scale):
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=0.4, m=3).gradients
    value = SAM(module, rho=0.4, m=3).objective(loss_of(module), *batch, scale=scale)
    (factor * value).backward()
    assert relative_error(grads(module), [factor * g for g in expected]) < 1e-12


def test_outer_functions_are_differentiated_by_the_chain_rule():
    module, batch = mlp(), regression()
    naive = naive_sam(module, squared, batch, rho=0.4)
    extra = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    value = SAM(module, rho=0.4).objective(loss_of(module), *batch)
    (value.square() * extra).backward()
    assert relative_error(grads(module), [4 * naive.loss * g for g in naive.gradients]) < 1e-12
    assert extra.grad.item() == pytest.approx(naive.loss**2, rel=1e-12)


def test_values_over_k_accumulate_as_k_calls_of_backward():
    one, other, batch = mlp(), mlp(), regression(examples=8)
    sams = SAM(one, rho=0.4, m=2), SAM(other, rho=0.4, m=2)
    for i in (0, 4):
        (sams[0].objective(loss_of(one), *rows(batch, i, i + 4)) / 2).backward()
        sams[1].backward(loss_of(other), *rows(batch, i, i + 4), scale=0.5)
    assert relative_error(grads(one), grads(other)) < 1e-14
    assert relative_error(grads(one), naive_sam(one, squared, batch, rho=0.4, m=2).gradients) < 1e-12
    assert sams[0].steps_done == sams[1].steps_done == 1


def test_two_values_may_be_added_before_one_backward():
    module, batch = mlp(), regression(examples=8)
    sam, expected = SAM(module, rho=0.4, m=2), naive_sam(mlp(), squared, batch, rho=0.4, m=2)
    value = sum(sam.objective(loss_of(module), *rows(batch, i, i + 4)) for i in (0, 4)) / 2
    assert value.item() == pytest.approx(expected.loss, rel=1e-13)
    value.backward()
    assert relative_error(grads(module), expected.gradients) < 1e-12


@pytest.mark.parametrize("passes", [1.0, "scaler"])
def test_gradscaler_scales_the_value(passes):
    module, batch = mlp(dtype=torch.float32), regression(dtype=torch.float32)
    expected = naive_sam(module, squared, batch, rho=0.4, m=3, ascent="unnormalized").gradients
    start = [p.detach().clone() for p in module.parameters()]
    scaler, optimizer = (
        torch.amp.GradScaler("cpu", init_scale=64.0),
        torch.optim.SGD(module.parameters(), 1.0),
    )
    value = SAM(module, rho=0.4, m=3, ascent=Unnormalized()).objective(
        loss_of(module), *batch, scale=scaler if passes == "scaler" else passes
    )
    scaler.scale(value).backward()
    assert relative_error(grads(module), [64 * g for g in expected]) < 1e-5
    scaler.step(optimizer)
    moves = [s - p.detach() for s, p in zip(start, module.parameters(), strict=True)]
    assert relative_error(moves, expected) < 1e-5


def test_overflow_reaches_the_scaler_through_the_value():
    module, batch = mlp(dtype=torch.float32), regression(dtype=torch.float32)
    scaler, optimizer = (
        torch.amp.GradScaler("cpu", init_scale=64.0),
        torch.optim.SGD(module.parameters(), 1.0),
    )
    before = identity(module)
    value = SAM(module, rho=0.4).objective(lambda x, y: squared(module, x, y) * 1e38, *batch)
    scaler.scale(value).backward()
    scaler.step(optimizer)
    scaler.update()
    assert identity(module) == before
    assert scaler.get_scale() == 32.0


@pytest.mark.parametrize("keep", [False, True])
def test_second_backward_is_refused(keep):
    module, batch = mlp(), regression()
    value = SAM(module, rho=0.4).objective(loss_of(module), *batch)
    value.backward(retain_graph=keep)
    before = [bits(g) for g in grads(module)]
    with pytest.raises(RuntimeError, match=r"^the gradients must be used once, got a second backward\.$"):
        value.backward()
    assert [bits(g) for g in grads(module)] == before


def test_hooks_fire_once_and_with_the_whole_gradient():
    module, batch, fired = mlp(), regression(), []
    expected = naive_sam(module, squared, batch, rho=0.4, m=2).gradients
    for p in module.parameters():
        p.register_hook(lambda g: fired.append(("tensor", g.clone())))
        p.register_post_accumulate_grad_hook(lambda p: fired.append(("accumulated", p.grad.clone())))
    value = SAM(module, rho=0.4, m=2, steps=1).objective(loss_of(module), *batch)
    assert fired == []
    value.backward()
    for kind in ("tensor", "accumulated"):
        seen = {g.shape: g for name, g in fired if name == kind}
        assert len([name for name, _ in fired if name == kind]) == 4
        assert relative_error([seen[g.shape] for g in expected], expected) < 1e-12


def test_value_inside_a_dict_with_its_aux():
    module, (x, y) = mlp(), regression()

    def loss(x, y):
        out = module(x)
        return (out - y).square().mean(), {"out": out}

    def training_step():
        value, aux = SAM(module, rho=0.4, m=3).objective(loss, x, y)
        return {"loss": value, **aux}

    returned = training_step()
    returned["loss"].backward()
    expected = naive_sam(module, squared, (x, y), rho=0.4, m=3).gradients
    assert relative_error(grads(module), expected) < 1e-12
    assert not returned["out"].requires_grad
    with torch.no_grad():
        assert torch.allclose(returned["out"], module(x), rtol=1e-14, atol=1e-14)


def test_frozen_and_unused_parameters_get_no_gradient():
    module, batch = mlp(), regression()
    module.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    module[0].weight.requires_grad_(False)
    SAM(module, rho=0.4).objective(loss_of(module[:3]), *batch).backward()
    assert module[0].weight.grad is None
    assert module.idle.grad is None
    assert module[0].bias.grad is not None
    assert not module[0].weight.requires_grad


def test_value_is_not_changed_by_what_the_trainer_does_to_it():
    module, batch = mlp(), regression()
    value = SAM(module, rho=0.4).objective(loss_of(module), *batch)
    detached = value.detach().clone()
    value.backward()
    assert torch.equal(value.detach(), detached)


def test_value_may_be_dropped_without_a_trace():
    module, batch = mlp(), regression()
    before = identity(module)
    SAM(module, rho=0.4).objective(loss_of(module), *batch)
    assert grads(module) == [None] * 4
    assert identity(module) == before


def test_gradient_may_be_asked_for_instead_of_deposited():
    module, batch = mlp(), regression()
    value = SAM(module, rho=0.4, m=3).objective(loss_of(module), *batch)
    found = torch.autograd.grad(2 * value, list(module.parameters()))
    expected = naive_sam(module, squared, batch, rho=0.4, m=3).gradients
    assert relative_error(found, [2 * g for g in expected]) < 1e-12
    assert grads(module) == [None] * 4


@pytest.mark.parametrize("options", [{"combine": SurrogateGap(0.3)}, {"steps": 2}, {"diagnostics": True}])
def test_objective_takes_what_backward_takes(options):
    one, other, batch, climbed = mlp(), mlp(), regression(1), regression(2)
    for module, name in ((one, "backward"), (other, "objective")):
        sam, parts = (
            SAM(module, rho=0.4, m=3, **options),
            MicroBatches([rows(batch, 0, 4), rows(batch, 4, 7)]),
        )
        value = getattr(sam, name)(loss_of(module), parts, ascent_batch=climbed)
        if name == "objective":
            value.backward()
    assert relative_error(grads(one), grads(other)) < 1e-14


def test_weighting_outside_the_optimizer_is_refused():
    module, batch = mlp(), regression()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    sam = SAM(module, rho=0.4, combine=DecoupledWeighted(0.5, optimizer))
    with pytest.raises(ValueError, match=r"^DecoupledWeighted must be used with backward, got objective\.$"):
        sam.objective(loss_of(module), *batch)
    assert sam.steps_done == 0


def addresses(tensors):
    return [t.untyped_storage().data_ptr() for t in tensors]


def test_gradients_are_handed_over_without_a_copy():
    params = two()
    gradients = [torch.ones_like(p) for p in params]
    before = addresses(gradients)
    deposit(params, gradients)
    assert gradients == []
    assert addresses([p.grad for p in params]) == before
    deposit(params, [torch.ones_like(p) for p in params])
    assert addresses([p.grad for p in params]) == before
    assert [p.grad.tolist() for p in params] == [[2.0] * 3, [2.0] * 2]


def test_gradients_that_someone_else_holds_are_copied():
    params = two()
    held = [torch.ones_like(p) for p in params]
    deposit(params, list(held))
    for p, g in zip(params, held, strict=True):
        assert p.grad.data_ptr() != g.data_ptr()


def test_value_hands_over_its_gradients_without_a_copy():
    params = two()
    gradients = [torch.ones_like(p) for p in params]
    before = addresses(gradients)
    as_loss(torch.tensor(3.0), params, gradients).backward()
    assert addresses([p.grad for p in params]) == before


class GivesAway(torch.autograd.Function):
    """A sum whose gradient is the user's own tensor, itself."""

    @staticmethod
    def forward(ctx, w, slope):
        ctx.slope = slope
        return (w * slope).sum()

    @staticmethod
    def backward(ctx, _):
        return ctx.slope, None


def of_the_users_tensor(a, b, slope):
    return GivesAway.apply(a, slope) + b.sum()


def of_one_tensor_for_two(a, b, slope):
    return ((a + b) * slope).sum()


def of_two_views(a, b, slope):
    return ((a.view(2, 3) + b.view(2, 3)) * slope.view(2, 3)).sum()


def expanded(a, b, _):
    return a.sum() + b.sum()


@pytest.mark.parametrize("loss", [of_the_users_tensor, of_one_tensor_for_two, of_two_views, expanded])
@pytest.mark.parametrize(
    "options", [{"rho": 0.0}, {"rho": 0.4}, {"rho": 0.4, "m": 1}, {"rho": 0.4, "steps": 2}]
)
@pytest.mark.parametrize("way", ["backward", "objective"])
def test_no_gradient_shares_its_memory(loss, options, way):
    a, b = two((6,), (6,))
    slope = torch.arange(6.0, dtype=torch.float64)
    kept = slope.clone()
    sam = SAM([a, b], **options)

    def of(x):
        factor = x.mean()
        return loss(a, b, slope) * factor if loss is not of_the_users_tensor else loss(a, b, slope)

    value = getattr(sam, way)(of, torch.ones(2))
    if way == "objective":
        value.backward()
    assert len({a.grad.data_ptr(), b.grad.data_ptr(), slope.data_ptr(), a.data_ptr(), b.data_ptr()}) == 5
    held = b.grad.clone()
    a.grad.mul_(7.0)
    assert torch.equal(b.grad, held)
    b.grad.mul_(5.0)
    assert torch.equal(slope, kept)
    again = slope if loss is not expanded else torch.ones(6)
    assert torch.equal(a.grad, 7.0 * again)


def test_gradients_do_not_share_memory_with_what_the_ascent_and_the_rule_keep():
    """A climb that led nowhere returns the first pass's gradient, which a remembering ascent has seen."""
    seen = []

    class Remembers:
        def __call__(self, _):
            return None

        def remember(self, gradients):
            seen.extend(gradients)

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    a, b = two()
    SAM([a, b], rho=0.4, ascent=Remembers()).backward(lambda x: (a.sum() + b.sum()) * x.mean(), torch.ones(2))
    kept = [g.clone() for g in seen]
    a.grad.mul_(7.0)
    b.grad.mul_(7.0)
    assert all(torch.equal(s, k) for s, k in zip(seen, kept, strict=True))
    assert len(seen) == 2
