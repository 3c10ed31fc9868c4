"""``SAMOptimizer``: the step of SAM behind the interface of an optimizer, in both styles of call."""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from lowland import SAM, SAMOptimizer
from lowland.sam import Friendly, Look, RandomSubset, Weighted, stable
from lowland.sam.ascent import AlongMomentum
from lowland.sam.combine import DecoupledWeighted
from lowland.sam.schedule import Cosine, Window

from ..naive import (
    added,
    bits,
    bn_conv,
    buffers_of,
    identity,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    seeded,
    squared,
    tensors,
)

BASES = {
    "sgd": functools.partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": functools.partial(AdamW, lr=0.05),
}
WORLD = 2


def batches(num, examples=7):
    return [regression(seed, examples) for seed in range(num)]


def closure_of(optimizer, module, batch, loss=squared):
    def closure():
        optimizer.zero_grad()
        value = loss(module, *batch)
        value.backward()
        return value

    return closure


def by_closure(optimizer, module, batch, loss=squared):
    return optimizer.step(closure_of(optimizer, module, batch, loss)).detach()


def by_two_steps(optimizer, module, batch, loss=squared):
    optimizer.zero_grad()
    value = loss(module, *batch)
    value.backward()
    optimizer.first_step(zero_grad=True)
    loss(module, *batch).backward()
    optimizer.second_step(zero_grad=True)
    return value.detach()


STYLES = {"closure": by_closure, "two steps": by_two_steps}
both_styles = pytest.mark.parametrize("step", STYLES.values(), ids=STYLES)


def by_sam(sam, base, module, batch, loss=squared):
    """The same step in the plain loop."""
    base.zero_grad()
    value = sam.backward(functools.partial(loss, module), *batch)
    base.step()
    return value


def weights(module):
    return [bits(p) for p in module.parameters()]


def dropout_net(seed=0):
    return seeded(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)), seed)


class Sometimes(nn.Module):
    """A body, and an extra layer that only the forward passes in ``uses`` run, counted from 0."""

    def __init__(self, uses):
        super().__init__()
        self.body, self.extra = seeded(nn.Linear(4, 3)), seeded(nn.Linear(4, 3), 1)
        self.uses, self.passes = uses, 0

    def forward(self, x):
        use, self.passes = self.passes in self.uses, self.passes + 1
        return self.body(x) + self.extra(x) if use else self.body(x)


class Fails(nn.Module):
    """Batch norm and dropout around a layer; the forward pass of the number ``fails`` raises at its end."""

    def __init__(self):
        super().__init__()
        norm, tail = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.layers = seeded(nn.Sequential(nn.Linear(4, 6), norm, nn.Dropout(0.5), nn.Tanh(), tail))
        self.passes, self.fails = 0, None

    def forward(self, x):
        out, call, self.passes = self.layers(x), self.passes, self.passes + 1
        if call == self.fails:
            raise RuntimeError("out of memory")
        return out


# The step


@both_styles
@pytest.mark.parametrize("base", BASES)
def test_steps_are_those_of_backward_and_the_base_optimizer(step, base):
    one, two = mlp(), mlp()
    bases = [BASES[base](m.parameters()) for m in (one, two)]
    optimizer, sam = SAMOptimizer(bases[0], rho=0.4), SAM(two, rho=0.4)
    for batch in batches(5):
        value = step(optimizer, one, batch)
        assert value.item() == by_sam(sam, bases[1], two, batch).item()
        assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-14
    assert optimizer.steps_done == sam.steps_done == 5


@both_styles
def test_one_step_of_sgd_is_the_formula(step):
    module, batch = mlp(), regression()
    found = naive_sam(module, squared, batch, rho=0.4)
    expected = added([p.detach().clone() for p in module.parameters()], found.gradients, -0.1)
    value = step(SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4), module, batch)
    assert relative_error([p.detach() for p in module.parameters()], expected) < 1e-14
    assert value.item() == pytest.approx(found.loss, rel=1e-14)


def test_first_step_climbs_by_rho_and_second_step_puts_back_bit_for_bit():
    module, batch = mlp(), regression()
    before, w = identity(module), [p.detach().clone() for p in module.parameters()]
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.0), rho=0.4)
    squared(module, *batch).backward()
    expected = naive_sam(module, squared, batch, rho=0.4).perturbations[0]
    optimizer.first_step()
    e = added([p.detach() for p in module.parameters()], w, -1.0)
    assert relative_error(e, expected) < 1e-14
    assert norm(e) == pytest.approx(0.4, rel=1e-14)
    assert all(p.grad is not None for p in module.parameters()), "zero_grad was not asked for"
    optimizer.second_step(zero_grad=True)
    assert identity(module) == before
    assert all(p.grad is None for p in module.parameters())


@both_styles
@pytest.mark.parametrize("base", BASES)
def test_rho_zero_is_the_base_optimizer_bit_for_bit(step, base):
    one, two = mlp(), mlp()
    optimizer, plain = SAMOptimizer(BASES[base](one.parameters()), rho=0.0), BASES[base](two.parameters())
    for batch in batches(20):
        step(optimizer, one, batch)
        plain.step(closure_of(plain, two, batch))
    assert weights(one) == weights(two)


@both_styles
@pytest.mark.parametrize("combine", [Weighted(0.8), stable], ids=["weighted", "stable"])
def test_rules_combine_the_two_gradients_as_in_sam(step, combine):
    one, two = mlp(), mlp()
    bases = [BASES["sgd"](m.parameters()) for m in (one, two)]
    optimizer, sam = SAMOptimizer(bases[0], rho=0.4, combine=combine), SAM(two, rho=0.4, combine=combine)
    for batch in batches(4):
        step(optimizer, one, batch)
        by_sam(sam, bases[1], two, batch)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-13


def test_rule_sees_the_gradient_of_the_climb_although_it_is_zeroed_in_place():
    """``zero_grad(set_to_none=False)`` between the passes writes into the tensors that ``.grad`` was."""
    one, two, batch = mlp(), mlp(), regression()
    by_two_steps(SAMOptimizer(SGD(one.parameters(), lr=0.1), rho=0.4, combine=Weighted(0.8)), one, batch)
    optimizer = SAMOptimizer(SGD(two.parameters(), lr=0.1), rho=0.4, combine=Weighted(0.8))
    squared(two, *batch).backward()
    optimizer.first_step()
    optimizer.zero_grad(set_to_none=False)
    squared(two, *batch).backward()
    optimizer.second_step()
    assert relative_error(list(two.parameters()), list(one.parameters())) < 1e-14


# Radii


@both_styles
def test_schedule_of_rho_counts_steps(step):
    one, two = mlp(), mlp()
    rho = Cosine(0.5, 0.0, 4)
    bases = [SGD(m.parameters(), lr=0.1) for m in (one, two)]
    optimizer, sam = SAMOptimizer(bases[0], rho=rho), SAM(two, rho=rho)
    for batch in batches(6):
        step(optimizer, one, batch)
        by_sam(sam, bases[1], two, batch)
    assert weights(one) == weights(two)


@pytest.mark.filterwarnings("ignore:the loss depends on tensors")
@both_styles
def test_groups_may_have_their_own_rho_and_zero_leaves_them_alone(step):
    one, two, batch = mlp(), mlp(), regression()
    groups = [
        [{"params": m[0].weight, "rho": 0.0}, {"params": m[2].weight, "rho": 0.2}, {"params": m[0].bias}]
        for m in (one, two)
    ]
    optimizer = SAMOptimizer(SGD(groups[0], lr=0.1), rho=0.4)
    seen = []
    one.register_forward_hook(lambda *_: seen.append([p.detach().clone() for p in one.parameters()]))
    step(optimizer, one, batch)
    by_sam(SAM(groups[1], rho=0.4), SGD(groups[1], lr=0.1), two, batch)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-14
    moved = [not torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    assert moved == [False, True, True, False]


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
@both_styles
def test_radius_out_of_range_is_refused(step, rho):
    module = mlp()
    before = identity(module)
    with pytest.raises(ValueError, match="rho must be non-negative and finite, got"):
        step(SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=rho), module, regression())
    assert identity(module) == before


# What the base optimizer shares


def test_groups_state_and_defaults_are_the_base_optimizers_own():
    module = mlp()
    base = BASES["sgd"](module.parameters())
    optimizer = SAMOptimizer(base, rho=0.4)
    assert isinstance(optimizer, Optimizer)
    by_closure(optimizer, module, regression())

    def shared():
        return [
            getattr(optimizer, name) is getattr(base, name) for name in ("param_groups", "state", "defaults")
        ]

    assert shared() == [True] * 3
    base.load_state_dict(base.state_dict())
    assert shared() == [True] * 3
    optimizer.load_state_dict(optimizer.state_dict())
    assert shared() == [True] * 3
    assert len(optimizer.state) == 4, "momentum of each parameter"


def test_added_group_is_trained_perturbed_and_in_the_base_optimizer():
    one, two, batch = mlp(), mlp(), regression()
    optimizer = SAMOptimizer(SGD(one[0].parameters(), lr=0.1), rho=0.4)
    optimizer.add_param_group({"params": one[2].parameters(), "lr": 0.3})
    assert [group["lr"] for group in optimizer.base_optimizer.param_groups] == [0.1, 0.3]
    by_closure(optimizer, one, batch)
    base = SGD([{"params": two[0].parameters()}, {"params": two[2].parameters(), "lr": 0.3}], lr=0.1)
    by_sam(SAM(two, rho=0.4), base, two, batch)
    assert weights(one) == weights(two)


@both_styles
def test_hooks_are_those_of_the_base_optimizer_and_fire_once_a_step(step):
    module, fired = mlp(), []
    base = SGD(module.parameters(), lr=0.1)
    optimizer = SAMOptimizer(base, rho=0.4)
    handle = optimizer.register_step_post_hook(lambda *call: fired.append(("post", call[0] is base)))
    optimizer.register_step_pre_hook(lambda *call: fired.append(("pre", call[0] is base)))
    step(optimizer, module, regression())
    assert fired == [("pre", True), ("post", True)]
    handle.remove()
    step(optimizer, module, regression())
    assert fired[2:] == [("pre", True)]


def test_repr_names_both_and_the_radius():
    found = repr(SAMOptimizer(SGD(mlp().parameters(), lr=0.1), rho=0.4))
    assert found.startswith("SAMOptimizer(SGD (")
    assert found.endswith("rho=0.4)")


SCHEDULERS = {
    "StepLR": lambda optimizer: StepLR(optimizer, 2, gamma=0.5),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.3, total_steps=8),
    "ReduceLROnPlateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
}


@both_styles
@pytest.mark.parametrize("around", ["the optimizer", "the base optimizer"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_work_without_a_warning(name, around, step):
    """OneCycleLR writes the momentum too, which it finds through ``defaults``."""
    one, two = mlp(), mlp()
    optimizer = SAMOptimizer(BASES["sgd"](one.parameters()), rho=0.4)
    plain, sam = BASES["sgd"](two.parameters()), SAM(two, rho=0.4)
    scheduler = SCHEDULERS[name](optimizer if around == "the optimizer" else optimizer.base_optimizer)
    other, rates = SCHEDULERS[name](plain), []
    for batch in batches(5):
        value = step(optimizer, one, batch)
        by_sam(sam, plain, two, batch)
        for each in (scheduler, other):
            each.step(*[value] if name == "ReduceLROnPlateau" else [])
        rates.append(plain.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["lr"] == rates[-1]
    assert len(set(rates)) > 1
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-14


# Copies and states


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("scheduled", [False, True])
def test_copy_with_its_module_goes_on_alike_and_apart(how, scheduled):
    """A scheduler replaces ``step`` by a wrapper that refers to the optimizer: not part of a copy."""
    module = mlp()
    optimizer = SAMOptimizer(BASES["adamw"](module.parameters()), rho=0.4, ascent=Friendly())
    if scheduled:
        StepLR(optimizer, 1)
    by_closure(optimizer, module, regression())
    twin, other = COPIES[how]((module, optimizer))
    start = weights(module)
    assert [id(p) for g in other.param_groups for p in g["params"]] == [id(p) for p in twin.parameters()]
    by_closure(other, twin, regression(2))
    assert weights(module) == start
    by_closure(optimizer, module, regression(2))
    assert weights(module) == weights(twin) != start


PARTS = {
    "plain": dict,
    "friendly": lambda: {"ascent": Friendly()},
    "look": lambda: {"combine": Look(3)},
    "schedule": lambda: {"rho": Cosine(0.5, 0.1, 6)},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("parts", PARTS)
def test_state_dict_resumes_identically(parts, base):
    one, two = mlp(), mlp(1)
    first, second = (
        SAMOptimizer(BASES[base](m.parameters()), **{"rho": 0.4, **PARTS[parts]()}) for m in (one, two)
    )
    for batch in batches(4):
        by_closure(first, one, batch)
    saved = io.BytesIO()
    torch.save({"module": one.state_dict(), "optimizer": first.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    two.load_state_dict(state["module"])
    second.load_state_dict(state["optimizer"])
    for batch in batches(4):
        by_closure(first, one, batch)
        by_closure(second, two, batch)
    assert weights(one) == weights(two)


def test_state_dict_holds_the_base_optimizers_and_takes_a_plain_one():
    one, two, batch = mlp(), mlp(), regression()
    base = BASES["adamw"](one.parameters())
    base.step(closure_of(base, one, batch))
    plain = base.state_dict()
    optimizer = SAMOptimizer(base, rho=0.4)
    state = optimizer.state_dict()
    assert state.pop("sam") == {"step": 0}
    assert state.keys() == plain.keys()
    assert state["param_groups"] == plain["param_groups"]
    other = SAMOptimizer(BASES["adamw"](two.parameters()), rho=0.4)
    other.load_state_dict(copy.deepcopy(plain))
    two.load_state_dict(one.state_dict())
    assert plain.keys() == {"state", "param_groups"}, "not taken apart"
    by_closure(optimizer, one, batch)
    by_closure(other, two, batch)
    assert weights(one) == weights(two)


def test_state_of_other_parts_is_refused():
    """As in ``SAM``: what a part remembers is not dropped without a word."""
    module = mlp()
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4, ascent=Friendly())
    by_closure(optimizer, module, regression())
    other = SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4)
    with pytest.raises(ValueError, match="must have the keys"):
        other.load_state_dict(optimizer.state_dict())


# Passes


def test_second_evaluation_sees_the_masks_of_the_first_and_the_next_step_others():
    module, masks = dropout_net(), []
    module[1].register_forward_hook(lambda *call: masks.append(call[2].detach() == 0))
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4)
    torch.manual_seed(0)
    for batch in batches(2):
        by_closure(optimizer, module, batch)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_generator_is_after_a_step_where_one_evaluation_leaves_it():
    module = dropout_net()
    torch.manual_seed(0)
    module(regression()[0])
    expected = torch.rand(())
    torch.manual_seed(0)
    by_closure(SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4), module, regression())
    assert torch.rand(()) == expected


def test_random_ascent_is_another_in_every_step():
    """Also of a module that draws nothing itself."""
    module = mlp()
    seen, w = [], nn.utils.parameters_to_vector(module.parameters()).detach()
    module.register_forward_hook(
        lambda *_: seen.append(nn.utils.parameters_to_vector(module.parameters()) != w)
    )
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.0), rho=0.4, ascent=RandomSubset(0.5))
    for _ in range(2):
        by_closure(optimizer, module, regression())
    assert 0 < seen[1].sum() < seen[1].numel()
    assert not torch.equal(seen[1], seen[3])


@both_styles
@pytest.mark.parametrize("named", [False, True])
def test_batch_norm_moves_in_the_first_pass_only(step, named):
    module, twin = bn_conv(), bn_conv()
    batch = tuple(tensors(2, (5, 2, 5, 5), (5, 2, 2, 2)))
    base = SGD(module.parameters(), lr=0.1)
    twin(batch[0])
    step(SAMOptimizer(base, rho=0.4, module=module if named else None), module, batch)
    assert buffers_of(module) == buffers_of(twin)
    assert [module[i].num_batches_tracked.item() for i in (1, 4)] == [1, 1]


@both_styles
def test_both_lets_batch_norm_move_in_both_passes(step):
    module, batch = bn_conv(), tuple(tensors(2, (5, 2, 5, 5), (5, 2, 2, 2)))
    step(SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4, bn_stats="both"), module, batch)
    assert [module[i].num_batches_tracked.item() for i in (1, 4)] == [2, 2]


def test_frozen_lets_batch_norm_move_in_no_pass_of_a_closure():
    module, batch = bn_conv(), tuple(tensors(2, (5, 2, 5, 5), (5, 2, 2, 2)))
    before = buffers_of(module)
    by_closure(SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4, bn_stats="frozen"), module, batch)
    assert buffers_of(module) == before


@pytest.mark.parametrize(
    ("rho", "expected"), [(0.4, [2, 1, 1, 2, 1, 1, 2]), (Window(0.4, stop=4), [2, 1, 1, 2, 1, 1, 1])]
)
def test_look_calls_the_closure_once_in_the_steps_that_reuse(rho, expected):
    """And where the radius is 0, which is the plain gradient: nothing is reused then."""
    one, two = mlp(), mlp()
    bases = [BASES["sgd"](m.parameters()) for m in (one, two)]
    optimizer, sam = SAMOptimizer(bases[0], rho=rho, combine=Look(3)), SAM(two, rho=rho, combine=Look(3))
    calls, passes = [], []
    one.register_forward_hook(lambda *_: calls.append(1))
    for batch in batches(7):
        calls.clear()
        by_closure(optimizer, one, batch)
        passes.append(len(calls))
        by_sam(sam, bases[1], two, batch)
    assert passes == expected
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-13


@both_styles
@pytest.mark.parametrize("uses", [(0,), (1,)], ids=["first pass", "second pass"])
def test_layer_that_one_pass_uses_does_not_drift(step, uses):
    module = Sometimes(uses)
    before = identity(module)
    step(SAMOptimizer(SGD(module.parameters(), lr=0.0), rho=0.4), module, regression())
    assert identity(module) == before


@both_styles
@pytest.mark.parametrize("uses", [(0,), (1,)], ids=["first pass", "second pass"])
def test_layer_that_one_pass_uses_has_the_gradient_of_backward(step, uses):
    one, two = Sometimes(uses), Sometimes(uses)
    bases = [SGD(m.parameters(), lr=0.1) for m in (one, two)]
    step(SAMOptimizer(bases[0], rho=0.4), one, regression())
    by_sam(SAM(two, rho=0.4), bases[1], two, regression())
    assert weights(one) == weights(two)


@both_styles
def test_zero_gradient_is_climbed_nowhere_and_the_base_optimizer_steps(step):
    module, other = mlp(), mlp()
    for p in other.parameters():
        p.data.mul_(1.0 - 0.1 * 0.01)
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.1, weight_decay=0.01), rho=0.4)
    step(optimizer, module, regression(), lambda module, x, _: 0.0 * module(x).sum())
    assert relative_error(list(module.parameters()), list(other.parameters())) < 1e-14


@both_styles
def test_loss_that_gives_no_parameter_a_gradient_is_refused_and_leaves_them_as_they_are(step):
    module, other = mlp(), nn.Parameter(torch.ones(()))
    before = identity(module)
    optimizer = SAMOptimizer(BASES["adamw"](module.parameters()), rho=0.4)
    with pytest.raises(ValueError, match=r"^loss must depend on the params, got a gradient for none of them"):
        step(optimizer, module, regression(), lambda *_: other * 3.0)
    assert identity(module) == before


def test_frozen_parameters_are_neither_perturbed_nor_trained():
    one, two, batch = mlp(), mlp(), regression()
    for module in (one, two):
        module[0].requires_grad_(False)
    by_closure(SAMOptimizer(SGD(one.parameters(), lr=0.1), rho=0.4), one, batch)
    by_sam(SAM(two, rho=0.4), SGD(two.parameters(), lr=0.1), two, batch)
    assert weights(one) == weights(two)


@both_styles
def test_bfloat16_weights_move_as_in_sam_and_come_back(step):
    module, batch = mlp(dtype=torch.bfloat16), regression(dtype=torch.bfloat16)
    before, seen = identity(module), []
    w = [p.detach().float() for p in module.parameters()]
    module.register_forward_hook(lambda *_: seen.append([p.detach().float() for p in module.parameters()]))
    step(SAMOptimizer(SGD(module.parameters(), lr=0.0), rho=0.4), module, batch)
    assert identity(module) == before
    assert norm(added(seen[1], w, -1.0)) == pytest.approx(0.4, rel=0.05)
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4)
    step(optimizer, module, batch)
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())
    assert identity(module) != before


# Mixed precision


def scaled_steps(module, optimizer, scaler, given, between=None):
    for batch in given:
        optimizer.zero_grad()
        scaler.scale(squared(module, *batch)).backward()
        optimizer.first_step(zero_grad=True, scale=scaler)
        scaler.scale(squared(module, *batch)).backward()
        if between is not None:
            between()
        optimizer.second_step(scaler=scaler)
        scaler.update()


@pytest.mark.parametrize("ascent", [None, "friendly"])
def test_two_steps_with_a_gradscaler_are_those_without(ascent):
    """A power of two is no rounding; an ascent that remembers gradients remembers unscaled ones."""
    one, two = mlp(), mlp()
    options = [{"rho": 0.4, "ascent": Friendly() if ascent else None} for _ in range(2)]
    first, second = (
        SAMOptimizer(BASES["sgd"](m.parameters()), **o) for m, o in zip((one, two), options, strict=True)
    )
    scaled_steps(one, first, torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2), batches(4))
    for batch in batches(4):
        by_two_steps(second, two, batch)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-13


@pytest.mark.parametrize("handle", ["the optimizer", "the base optimizer"])
def test_gradients_that_the_user_unscaled_to_clip_are_not_unscaled_again(handle):
    module, batch = mlp(), regression()
    w = [p.detach().clone() for p in module.parameters()]
    g = naive_sam(module, squared, batch, rho=0.4).gradients
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=1.0), rho=0.4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def clip():
        scaler.unscale_(optimizer if handle == "the optimizer" else optimizer.base_optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), 0.01)

    scaled_steps(module, optimizer, scaler, [batch], clip)
    moves = added(w, [p.detach() for p in module.parameters()], -1.0)
    assert relative_error(moves, [0.01 / norm(g) * t for t in g]) < 1e-3


@pytest.mark.parametrize("when", ["first pass", "second pass", "both"])
def test_overflow_leaves_the_weights_bit_for_bit_and_lowers_the_scale(when):
    module, (x, y) = mlp(), regression()
    before = identity(module)
    optimizer = SAMOptimizer(BASES["sgd"](module.parameters()), rho=0.4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    overflows = [when != "second pass", when != "first pass"]
    for number, overflow in enumerate(overflows):
        scaler.scale(squared(module, x, y) * (float("inf") if overflow else 1.0)).backward()
        if number == 0:
            optimizer.first_step(zero_grad=True, scale=scaler)
    optimizer.second_step(scaler=scaler)
    scaler.update()
    if when != "first pass":
        assert identity(module) == before
        assert scaler.get_scale() == 2.0**9
    assert all(p.isfinite().all() for p in module.parameters())
    scaled_steps(module, optimizer, scaler, [(x, y)])
    assert identity(module) != before


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("handle", ["the optimizer", "the base optimizer"])
def test_overflow_that_the_user_unscaled_is_skipped(handle, fused):
    """A fused optimizer is told of it by the scaler, in an attribute, and skips the step itself."""
    module, batch = mlp(), regression()
    before = identity(module)
    optimizer = SAMOptimizer(AdamW(module.parameters(), lr=0.1, fused=fused), rho=0.4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(2):
        scaler.scale(squared(module, *batch) * float("inf")).backward()
        if number == 0:
            optimizer.first_step(zero_grad=True, scale=scaler)
    scaler.unscale_(optimizer if handle == "the optimizer" else optimizer.base_optimizer)
    optimizer.second_step(scaler=scaler)
    scaler.update()
    assert identity(module) == before
    assert scaler.get_scale() == 2.0**9


# Errors


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fails", [0, 1], ids=["first pass", "second pass"])
def test_error_in_the_closure_leaves_everything_as_it_was(fails, error):
    module, batch = Fails(), regression()
    optimizer = SAMOptimizer(BASES["sgd"](module.parameters()), rho=0.4)
    by_closure(optimizer, module, batch)
    grads = [(p.grad, bits(p.grad)) for p in module.parameters()]
    before = identity(module), buffers_of(module), torch.get_rng_state()
    twin, other = copy.deepcopy((module, optimizer))
    calls = []

    def closure():
        optimizer.zero_grad()
        value = squared(module, *batch)
        value.backward()
        calls.append(value)
        if len(calls) > fails:
            raise error("out of memory")
        return value

    with pytest.raises(error, match="out of memory"):
        optimizer.step(closure)
    assert len(calls) == fails + 1
    assert (identity(module), buffers_of(module)) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [(p.grad, bits(p.grad)) for p in module.parameters()] == grads
    by_closure(optimizer, module, batch)
    torch.set_rng_state(before[2])
    by_closure(other, twin, batch)
    assert weights(module) == weights(twin)


@both_styles
def test_step_that_failed_does_not_count(step):
    """As in ``SAM``: schedules and averages go on as if it had not been tried."""
    module, twin, options = Fails(), Fails(), {"rho": Cosine(0.5, 0.0, 4)}
    optimizer, other = (
        SAMOptimizer(SGD(m.parameters(), lr=0.1), ascent=Friendly(), **options) for m in (module, twin)
    )
    for seed, fails in ((0, None), (1, 1), (1, None)):
        module.passes, module.fails = 0, fails
        torch.manual_seed(seed)
        if fails is None:
            step(optimizer, module, regression(seed))
        else:
            with pytest.raises(RuntimeError, match="out of memory"):
                step(optimizer, module, regression(seed))
            optimizer.restore()
    for seed in (0, 1):
        torch.manual_seed(seed)
        step(other, twin, regression(seed))
    assert optimizer.steps_done == other.steps_done == 2
    assert weights(module) == weights(twin)


def test_restore_puts_back_without_a_step():
    module, batch = mlp(), regression()
    optimizer = SAMOptimizer(BASES["sgd"](module.parameters()), rho=0.4)
    before = identity(module)
    optimizer.restore()
    squared(module, *batch).backward()
    optimizer.first_step()
    assert identity(module) != before
    optimizer.restore()
    assert identity(module) == before
    assert not optimizer.state
    with pytest.raises(RuntimeError, match="second_step must follow first_step, got none"):
        optimizer.second_step()
    by_two_steps(optimizer, module, batch)
    assert identity(module) != before


PERTURBED = (
    "weights must be put back before they are {}, got perturbed ones: call second_step or restore first"
)


@pytest.mark.parametrize(
    ("what", "act"),
    [
        ("perturbed", lambda optimizer, _: optimizer.first_step()),
        ("perturbed", lambda optimizer, module: by_closure(optimizer, module, regression())),
        ("saved", lambda optimizer, _: optimizer.state_dict()),
        ("copied", lambda optimizer, _: copy.deepcopy(optimizer)),
        ("copied", lambda optimizer, _: pickle.dumps(optimizer)),
    ],
    ids=["first_step", "step", "state_dict", "deepcopy", "pickle"],
)
def test_perturbed_weights_are_not_perturbed_saved_or_copied(what, act):
    module = mlp()
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4)
    squared(module, *regression()).backward()
    optimizer.first_step()
    moved = identity(module)
    with pytest.raises(RuntimeError, match=PERTURBED.format(what)):
        act(optimizer, module)
    assert identity(module) == moved, "still perturbed, and still to be put back"
    optimizer.restore()
    act(optimizer, module)


def test_calls_that_cannot_work_are_refused():
    module = mlp()
    base = SGD(module.parameters(), lr=0.1)
    optimizer = SAMOptimizer(base, rho=0.4)
    with pytest.raises(TypeError, match="step must be given a closure that evaluates the loss, got none"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="second_step must follow first_step, got none"):
        optimizer.second_step()
    with pytest.raises(AttributeError, match="no_such_thing"):
        optimizer.no_such_thing  # noqa: B018


@pytest.mark.usefixtures("untyped")
def test_parts_that_are_for_sam_only_and_classes_are_refused():
    base = SGD(mlp().parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got type"):
        SAMOptimizer(SGD, rho=0.4)
    with pytest.raises(TypeError, match=r"an ascent along \.grad, got AlongMomentum: use lowland\.SAM"):
        SAMOptimizer(base, rho=0.4, ascent=AlongMomentum(base))
    with pytest.raises(TypeError, match=r"got DecoupledWeighted: use lowland\.SAM"):
        SAMOptimizer(base, rho=0.4, combine=DecoupledWeighted(0.9, base))


@pytest.mark.parametrize("options", [{"bn_stats": "frozen"}, {"combine": Look(3)}], ids=["frozen", "look"])
def test_options_that_only_a_closure_can_honour_are_refused_in_two_steps(options):
    """The first pass has been made when ``first_step`` is called: statistics moved, nothing is saved."""
    module = mlp()
    optimizer = SAMOptimizer(SGD(module.parameters(), lr=0.1), rho=0.4, **options)
    squared(module, *regression()).backward()
    with pytest.raises(ValueError, match="closure"):
        optimizer.first_step()


def test_parts_are_what_they_were_if_the_base_optimizer_refuses_its_state():
    ascent = Friendly()
    optimizer = SAMOptimizer(SGD(mlp().parameters(), lr=0.1), rho=0.1, ascent=ascent)
    state = optimizer.state_dict()
    state["sam"] = {"step": 3, "ascent": {"average": [torch.ones(2)]}}
    state["param_groups"] = []
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.load_state_dict(state)
    assert ascent.state_dict() == {"average": None}
    assert optimizer.steps_done == 0
