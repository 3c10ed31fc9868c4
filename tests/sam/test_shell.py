"""``SAM.backward`` in place of ``loss.backward()``: deposited once, with any optimizer, scaled, clipped."""

import functools
from copy import deepcopy

import pytest
import torch
from torch import nn

from lowland import L2, SAM, ClippedUnnormalized, Unnormalized, sam_gradient
from lowland.sam import Diagnostics

from .naive import (
    bits,
    bn_conv,
    identity,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    rows,
    squared,
    tensors,
)

ASCENTS = {"l2": L2(), "unnormalized": Unnormalized(), "clipped": ClippedUnnormalized()}


def grads(module):
    return [p.grad for p in module.parameters()]


def loss_of(module):
    return functools.partial(squared, module)


@pytest.mark.parametrize("m", [1, 3, None])
@pytest.mark.parametrize("ascent", ASCENTS)
def test_backward_leaves_the_gradient_of_the_naive_loop(m, ascent):
    module, batch = mlp(), regression()
    options = {"rho": 0.4, "m": m, "steps": 2, "step_size": 0.7, "l2": 0.1}
    expected = naive_sam(module, squared, batch, ascent=ascent, **options)
    value = SAM(module, ascent=ASCENTS[ascent], **options).backward(loss_of(module), *batch)
    assert relative_error(grads(module), expected.gradients) < 1e-12
    assert value.item() == pytest.approx(expected.loss, rel=1e-13)
    assert not value.requires_grad


def test_attributes_may_be_assigned_at_any_time():
    module, batch = mlp(), regression()
    sam = SAM(module, rho=0.4)
    sam.rho, sam.m, sam.steps, sam.step_size, sam.l2, sam.ascent = 0.2, 3, 2, 0.7, 0.1, Unnormalized()
    sam.backward(loss_of(module), *batch)
    options = {"rho": 0.2, "m": 3, "steps": 2, "step_size": 0.7, "l2": 0.1}
    expected = naive_sam(module, squared, batch, ascent="unnormalized", **options)
    assert relative_error(grads(module), expected.gradients) < 1e-12


def test_gradients_are_added_to_grad_in_its_storage():
    module, batch = mlp(), regression()
    sam = SAM(module, rho=0.4, m=3)
    sam.backward(loss_of(module), *batch)
    once, addresses = [g.clone() for g in grads(module)], [g.data_ptr() for g in grads(module)]
    sam.backward(loss_of(module), *batch)
    assert relative_error(grads(module), [2 * g for g in once]) < 1e-14
    assert [g.data_ptr() for g in grads(module)] == addresses


def test_two_calls_at_half_scale_are_one_call_over_both_halves():
    one, two, batch = mlp(), mlp(), regression(examples=8)
    SAM(one, rho=0.4, m=2).backward(loss_of(one), *batch)
    sam = SAM(two, rho=0.4, m=2)
    halves = [sam.backward(loss_of(two), *rows(batch, i, i + 4), scale=0.5).item() for i in (0, 4)]
    assert relative_error(grads(two), grads(one)) < 1e-14
    assert sum(halves) / 2 == pytest.approx(squared(one, *batch).item(), rel=1e-14)


@pytest.mark.parametrize("ascent", ASCENTS)
def test_scale_multiplies_the_gradient_only(ascent):
    one, two, batch = mlp(), mlp(), regression()
    options = {"rho": 0.4, "m": 3, "l2": 0.1, "ascent": ASCENTS[ascent]}
    value = SAM(one, **options).backward(loss_of(one), *batch)
    scaled = SAM(two, **options).backward(loss_of(two), *batch, scale=1024.0)
    assert scaled == value
    assert relative_error([g / 1024.0 for g in grads(two)], grads(one)) < 1e-14


def test_post_accumulate_hooks_fire_once_per_parameter_and_call():
    module, batch, fired = mlp(), regression(), []
    for name, p in module.named_parameters():
        p.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    sam = SAM(module, rho=0.4, m=2, steps=2)
    sam.backward(loss_of(module), *batch)
    names = sorted(name for name, _ in module.named_parameters())
    assert sorted(fired) == names
    sam.backward(loss_of(module), *batch)
    assert sorted(fired) == sorted(names * 2)


def test_optimizer_in_the_backward_hooks_sees_the_whole_gradient_at_the_unperturbed_weights():
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=0.4, m=3)
    start = [p.detach().clone() for p in module.parameters()]

    def sgd(p):
        p.data.sub_(0.1 * p.grad)

    for p in module.parameters():
        p.register_post_accumulate_grad_hook(sgd)
    SAM(module, rho=0.4, m=3).backward(loss_of(module), *batch)
    moves = [(s - p.detach()) / 0.1 for s, p in zip(start, module.parameters(), strict=True)]
    assert relative_error(moves, expected.gradients) < 1e-12


@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_tensor_hooks_act_on_the_deposited_gradient_once(rho):
    """As in ``loss.backward()``; a hook that halves is not applied in the passes and again after them."""
    a, b = (nn.Parameter(t) for t in tensors(0, (3,), (2,)))
    a.register_hook(lambda g: 0.5 * g)
    SAM([a, b], rho=rho).backward(lambda x: (2 * a.sum() + b.sum()) * x.mean(), torch.ones(4))
    assert a.grad.tolist() == pytest.approx([1.0] * 3)
    assert b.grad.tolist() == pytest.approx([1.0] * 2)


def test_gradients_go_through_one_backward_call(monkeypatch):
    module, batch, calls = mlp(), regression(), []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: (calls.append(a), backward(*a, **k)))
    SAM(module, rho=0.4, m=2).backward(loss_of(module), *batch)
    assert len(calls) == 1


def test_gradients_of_two_parameters_never_share_memory():
    a, b = (nn.Parameter(t) for t in tensors(0, (3,), (3,)))
    SAM([a, b], rho=0.4).backward(lambda x: (a + b).sum() * x.mean(), torch.ones(2))
    a.grad.zero_()
    assert b.grad.tolist() == [1.0] * 3


def test_unused_and_frozen_parameters_get_no_gradient():
    module, batch = mlp(), regression()
    module.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    module[0].weight.requires_grad_(False)
    frozen = bits(module[0].weight)
    net = module[:3]
    SAM(module, rho=0.4, m=3).backward(loss_of(net), *batch)
    assert module.idle.grad is None
    assert module[0].weight.grad is None
    assert not module[0].weight.requires_grad
    assert bits(module[0].weight) == frozen
    assert module[0].bias.grad is not None


def test_frozen_parameters_are_neither_perturbed_nor_in_the_norm():
    module, (x, y), seen = mlp(), regression(), []
    module[0].weight.requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    frozen = bits(module[0].weight)

    def loss(x, y):
        moved = norm([p.detach() - s for p, s in zip(trained, start, strict=True)])
        seen.append((moved, bits(module[0].weight) == frozen))
        return squared(module, x, y)

    SAM(module, rho=0.4).backward(loss, x, y)
    assert seen == [(0.0, True), (pytest.approx(0.4, rel=1e-12), True)]


@pytest.mark.filterwarnings("ignore:the loss depends on tensors")
@pytest.mark.parametrize("rho", [0.0, 0.4])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("m", [None, 1])
@pytest.mark.parametrize("engine", ["auto", "loop", "batched"])
def test_loss_that_uses_none_of_the_parameters_is_refused_and_leaves_grad_none(rho, l2, m, engine):
    a, b, other = (nn.Parameter(t) for t in tensors(0, (3,), (3,), (2,)))
    sam = SAM([a, b], rho=rho, l2=l2, m=m, engine=engine)
    with pytest.raises(ValueError, match=r"^loss must depend on the params, got a gradient for none of them"):
        sam.backward(lambda x: other.sum() * x.mean(), torch.ones(2))
    assert [a.grad, b.grad, other.grad] == [None, None, None]


def test_parameters_outside_sam_are_neither_moved_nor_trained_and_named_once():
    module, batch = mlp(), regression()
    sam = SAM(module[2], rho=0.4)
    with pytest.warns(UserWarning, match=r"not among the params and get none: .*weight of Linear"):
        sam.backward(loss_of(module), *batch)
    sam.backward(loss_of(module), *batch)  # a warning would be an error
    assert module[0].weight.grad is None
    assert module[2].weight.grad is not None


@pytest.mark.parametrize(
    "kind",
    [
        lambda module: module,
        lambda module: module.parameters(),
        lambda module: list(module.parameters()),
        lambda module: module.named_parameters(),
        lambda module: [{"params": module.parameters(), "lr": 0.1}],
        lambda module: [{"params": module[0].named_parameters()}, {"params": list(module[2].parameters())}],
        lambda module: torch.optim.SGD(module.parameters(), lr=0.1).param_groups,
        lambda module: [*module.parameters(), *module.parameters()],
        lambda module: [{"params": p} for p in module.parameters()],
    ],
    ids=[
        "module",
        "generator",
        "list",
        "named",
        "groups",
        "named_groups",
        "optimizers",
        "repeated",
        "single",
    ],
)
def test_parameters_are_given_in_any_way_an_optimizer_takes_them(kind):
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=0.4, m=3)
    sam = SAM(kind(module), rho=0.4, m=3)
    assert [id(p) for p in sam.params] == [id(p) for p in module.parameters()]
    sam.backward(loss_of(module), *batch)
    assert relative_error(grads(module), expected.gradients) < 1e-12


def test_tied_weights_count_once():
    first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    second.weight = first.weight
    module, (x, _) = nn.Sequential(first, nn.Tanh(), second), regression()
    expected = naive_sam(module, squared, (x, x), rho=0.4, m=3)
    SAM(module, rho=0.4, m=3).backward(loss_of(module), x, x)
    assert relative_error(grads(module), expected.gradients) < 1e-12


def test_aux_comes_back_beside_the_loss():
    module, (x, y) = mlp(), regression()

    def loss(x, y):
        out = module(x)
        return (out - y).square().mean(), out

    value, out = SAM(module, rho=0.4, m=3).backward(loss, x, y)
    with torch.no_grad():
        assert torch.allclose(out, module(x), rtol=1e-14, atol=1e-14)
    assert value.item() == pytest.approx((out - y).square().mean().item(), rel=1e-13)


def test_climb_on_another_batch_is_passed_on():
    module, batch, previous = mlp(), regression(), regression(5)
    expected = naive_sam(module, squared, batch, rho=0.4, m=3, ascent_batch=previous)
    SAM(module, rho=0.4, m=3).backward(loss_of(module), *batch, ascent_batch=previous)
    assert relative_error(grads(module), expected.gradients) < 1e-12


def test_diagnostics_are_those_of_the_last_call_if_asked_for():
    module, batch = mlp(), regression()
    sam = SAM(module, rho=0.4, m=3, diagnostics=True)
    assert sam.last_diagnostics is None
    sam.backward(loss_of(module), *batch)
    assert isinstance(sam.last_diagnostics, Diagnostics)
    assert sam.last_diagnostics.group_size.tolist() == [3, 3, 1]
    sam.diagnostics = False
    sam.backward(loss_of(module), *batch)
    assert sam.last_diagnostics is None


OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [mlp, bn_conv])
def test_radius_zero_is_the_base_optimizer_exactly(optimizer, model):
    one, two = model(), model()
    batch = regression() if model is mlp else tuple(tensors(2, (8, 2, 5, 5), (8, 2, 2, 2)))
    optimizers = [OPTIMIZERS[optimizer](module.parameters()) for module in (one, two)]
    sam = SAM(one, rho=0.0)
    for _ in range(20):
        optimizers[0].zero_grad()
        optimizers[1].zero_grad()
        value = sam.backward(loss_of(one), *batch)
        plain = squared(two, *batch)
        plain.backward()
        assert torch.equal(value, plain.detach())
        for o in optimizers:
            o.step()
    state = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in state)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_of_the_optimizer_is_its_own_alone(optimizer):
    module, batch = mlp(), regression()
    base = OPTIMIZERS[optimizer](module.parameters())
    SAM(module, rho=0.4, m=3).backward(loss_of(module), *batch)
    base.step()
    before = deepcopy(base.state_dict())
    SAM(base.param_groups, rho=0.4, m=3).backward(loss_of(module), *batch)
    after = base.state_dict()
    assert str(after) == str(before)
    assert len(base.state) == len(list(module.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_training_continues_identically(optimizer):
    batch = regression()

    def train(module, base, steps):
        sam = SAM(module, rho=0.4, m=3)
        for _ in range(steps):
            base.zero_grad()
            sam.backward(loss_of(module), *batch)
            base.step()

    whole, first, second = mlp(), mlp(), mlp(1)
    train(whole, OPTIMIZERS[optimizer](whole.parameters()), 8)
    base = OPTIMIZERS[optimizer](first.parameters())
    train(first, base, 4)
    second.load_state_dict(first.state_dict())
    resumed = OPTIMIZERS[optimizer](second.parameters())
    resumed.load_state_dict(base.state_dict())
    train(second, resumed, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_clipping_goes_between_backward_and_step():
    module, batch = mlp(), regression()
    start = [p.detach().clone() for p in module.parameters()]
    expected = naive_sam(module, squared, batch, rho=0.4, m=3).gradients
    base = torch.optim.SGD(module.parameters(), lr=1.0)
    SAM(module, rho=0.4, m=3).backward(loss_of(module), *batch)
    nn.utils.clip_grad_norm_(module.parameters(), 0.01)
    base.step()
    moves = [s - p.detach() for s, p in zip(start, module.parameters(), strict=True)]
    assert relative_error(moves, [0.01 * g / norm(expected) for g in expected]) < 1e-4
    assert norm(moves) == pytest.approx(0.01, rel=1e-4)


def test_gradscaler_trains_as_without_it_and_skips_an_overflow():
    one, two = mlp(dtype=torch.float32), mlp(dtype=torch.float32)
    batch = regression(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9) for module in (one, two)]
    sams = [SAM(module, rho=0.4, m=3, ascent=Unnormalized()) for module in (one, two)]
    scales = []
    for step in range(7):
        overflow = step == 4
        for o in optimizers:
            o.zero_grad()
        scale = scaler.scale(torch.ones(())).item()  # a scaler unscales only after it has scaled
        scales.append(scale)
        data = (batch[0] * float("inf"), batch[1]) if overflow else batch
        before = identity(one)
        value = sams[0].backward(loss_of(one), *data, scale=scale)
        scaler.unscale_(optimizers[0])
        nn.utils.clip_grad_norm_(one.parameters(), 5.0)
        scaler.step(optimizers[0])
        scaler.update()
        if overflow:
            assert identity(one) == before, "the step is skipped, the weights are whole"
            continue
        plain = sams[1].backward(loss_of(two), *batch)
        nn.utils.clip_grad_norm_(two.parameters(), 5.0)
        optimizers[1].step()
        assert value.item() == pytest.approx(plain.item(), rel=1e-5)
    assert scales == [2.0**10] * 3 + [2.0**11] * 2 + [2.0**10] * 2
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-5


def test_overflow_of_the_second_pass_alone_is_seen_by_the_scaler():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    before, calls = identity([a, b]), []

    def loss(x):
        calls.append(None)
        value = (a.square().sum() + b.square().sum()) * x.mean()
        return value * float("inf") if len(calls) == 2 else value

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    base = torch.optim.SGD([a, b], lr=0.1)
    value = SAM([a, b], rho=0.1).backward(loss, torch.ones(3), scale=scaler.scale(torch.ones(())).item())
    scaler.step(base)
    scaler.update()
    assert value.item() == 4.0
    assert identity([a, b]) == before
    assert scaler.get_scale() == 4.0


def test_nothing_is_deposited_when_a_pass_fails():
    module, batch = mlp(), regression()

    def fails(x, y):
        if len(x) == 1:
            raise RuntimeError("stop")
        return squared(module, x, y)

    with pytest.raises(RuntimeError, match="stop"):
        SAM(module, rho=0.4, m=3).backward(fails, *batch)
    assert grads(module) == [None] * 4


def test_shell_is_the_function_with_the_same_options():
    module, batch = mlp(), regression()
    SAM(module, rho=0.4, m=3, l2=0.1, steps=2, step_size=0.6).backward(loss_of(module), *batch, scale=3.0)
    expected = sam_gradient(
        loss_of(module),
        list(module.parameters()),
        batch,
        rho=0.4,
        m=3,
        l2=0.1,
        steps=2,
        step_size=0.6,
        scale=3.0,
    ).gradients
    assert all(torch.equal(a, b) for a, b in zip(grads(module), expected, strict=True))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("params", "name"),
    [(torch.ones(2, requires_grad=True), "Tensor"), ("weights", "str"), ({"params": []}, "dict")],
)
def test_params_of_the_wrong_kind_are_refused(params, name):
    message = (
        "^params must be a module, or an iterable of parameters, named parameters or parameter groups, "
        rf"got {name}\.$"
    )
    with pytest.raises(TypeError, match=message):
        SAM(params, rho=0.1)


@pytest.mark.usefixtures("untyped")
def test_batch_of_the_climb_that_is_no_tuple_is_refused():
    module, batch = mlp(), regression()
    with pytest.raises(TypeError, match=r"^ascent_batch must be the tuple of .*, got Tensor\.$"):
        SAM(module, rho=0.1).backward(loss_of(module), *batch, ascent_batch=batch[0])


def test_module_without_trainable_parameters_is_refused():
    module, batch = mlp().requires_grad_(False), regression()
    with pytest.raises(ValueError, match=r"^params must hold at least one tensor .*, got none\.$"):
        SAM(module, rho=0.1).backward(loss_of(module), *batch)
