"""GSAM, WSAM, LookSAM and SSAM, each against its formula written out, over whole trainings."""

import functools
import io

import pytest
import torch
from torch import nn

from lowland import SAM
from lowland.sam import DecoupledWeighted, Look, Part, SurrogateGap, Weighted, stable

from .naive import (
    added,
    identity,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    squared,
    tensors,
)


def both(module, batch, **options):
    """The gradients at w and at w + e."""
    found = naive_sam(module, squared, batch, **options)
    return found.at_weights, found.gradients


def dot(a, b):
    return sum((s * t).sum().item() for s, t in zip(a, b, strict=True))


def orthogonal(vector, to):
    return added(vector, to, -dot(vector, to) / dot(to, to))


def surrogate_gap(g, p):
    return added(p, orthogonal(g, p), -0.4)


def weighted(g, p):
    return [0.2 / 0.8 * b + (1 - 0.2 / 0.8) * a for a, b in zip(g, p, strict=True)]


def sharp(g, p):
    return [9.0 * b - 8.0 * a for a, b in zip(g, p, strict=True)]


def rescaled(g, p):
    return [b * (norm(g) / norm(p)) for b in p]


RULES = {
    "surrogate gap": (SurrogateGap(0.4), surrogate_gap),
    "weighted": (Weighted(0.2), weighted),
    "sharp": (Weighted(0.9), sharp),
    "stable": (stable, rescaled),
}


def sgd(params, **options):
    return torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, **options})


def adamw(params, **options):
    return torch.optim.AdamW(params, **{"lr": 0.01, **options})


def train(module, sam, base, batches):
    for batch in batches:
        base.zero_grad()
        sam.backward(functools.partial(squared, module), *batch)
        base.step()


def train_naive(module, rule, base, batches, **options):
    for batch in batches:
        for p, g in zip(module.parameters(), rule(*both(module, batch, **options)), strict=True):
            p.grad = g
        base.step()


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("m", [None, 3])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_training_is_that_of_the_formula(name, m, optimizer):
    combine, rule = RULES[name]
    one, two = mlp(), mlp()
    batches = [regression(i) for i in range(4)]
    train(one, SAM(one, rho=0.3, m=m, combine=combine), optimizer(one.parameters()), batches)
    train_naive(two, rule, optimizer(two.parameters()), batches, rho=0.3, m=m)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-10


@pytest.mark.parametrize("name", RULES)
def test_scale_of_the_loss_is_a_factor_of_the_result(name):
    combine, rule = RULES[name]
    module, batch = mlp(), regression()
    SAM(module, rho=0.3, m=3, combine=combine).backward(
        functools.partial(squared, module), *batch, scale=2.0**20
    )
    found = [p.grad / 2.0**20 for p in module.parameters()]
    assert relative_error(found, rule(*both(module, batch, rho=0.3, m=3))) < 1e-12


def test_surrogate_gap_by_hand_is_orthogonal_over_all_tensors_together():
    """g = (3 | 1), p = (1 | 1): the part of g across p is (1 | -1); per tensor it would be zero."""
    g, p = [torch.tensor([3.0]), torch.tensor([1.0])], [torch.tensor([1.0]), torch.tensor([1.0])]
    assert [t.item() for t in SurrogateGap(0.5)(g, p)] == pytest.approx([0.5, 1.5])


def test_surrogate_gap_leaves_the_perturbed_part_of_the_gradient_alone():
    module, batch = mlp(), regression()
    _, p = both(module, batch, rho=0.5)
    for alpha in (0.0, 0.3, 2.0):
        module.zero_grad()
        sam = SAM(module, rho=0.5, combine=SurrogateGap(alpha))
        sam.backward(functools.partial(squared, module), *batch)
        found = [q.grad for q in module.parameters()]
        assert dot(found, p) == pytest.approx(dot(p, p), rel=1e-11)
        assert (relative_error(found, p) > 1e-3) == (alpha > 0)


@pytest.mark.parametrize(
    ("gamma", "expected"), [(0.0, [1.0, 2.0]), (0.5, [5.0, -3.0]), (0.75, [13.0, -13.0])]
)
def test_weight_zero_is_the_gradient_a_half_is_sam_and_more_goes_beyond(gamma, expected):
    g, p = [torch.tensor([1.0]), torch.tensor([2.0])], [torch.tensor([5.0]), torch.tensor([-3.0])]
    assert [t.item() for t in Weighted(gamma)(g, p)] == pytest.approx(expected)


def test_stable_by_hand_uses_one_norm_for_all_tensors():
    g, p = [torch.tensor([0.0]), torch.tensor([10.0])], [torch.tensor([3.0]), torch.tensor([4.0])]
    assert [t.item() for t in stable(g, p)] == pytest.approx([6.0, 8.0])


def test_zero_vectors_are_met_without_a_division_by_zero():
    zero, one = [torch.zeros(2), torch.zeros(1)], [torch.ones(2), torch.ones(1)]
    assert all(torch.equal(t, z) for t, z in zip(stable(one, zero), zero, strict=True))
    assert [t.tolist() for t in SurrogateGap(0.5)(one, zero)] == [[-0.5, -0.5], [-0.5]]
    assert [t.tolist() for t in SurrogateGap(0.5)(zero, one)] == [[1.0, 1.0], [1.0]]


def test_rules_do_not_write_to_what_they_are_given():
    g, p = tensors(0, (2, 3), (4,)), tensors(1, (2, 3), (4,))
    before = identity([*g, *p])
    for combine, _ in RULES.values():
        combine(g, p)[0].zero_()
    look = Look(2)
    look = Look(2)
    look(g, p)
    look.reuse(g)[0].zero_()
    assert identity([*g, *p]) == before


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("gamma", [-0.1, 1.0, float("nan")])
def test_weights_out_of_range_are_refused(gamma):
    base = sgd(mlp().parameters())
    for make in (Weighted, lambda gamma: DecoupledWeighted(gamma, base)):
        with pytest.raises(ValueError, match=r"^gamma must be at least 0 and below 1, got .*\.$"):
            make(gamma)


def decoupled_by_hand(params, base, g, p, factor, lrs):
    """The optimizer's own step with g, then w <- w - lr gamma / (1 - gamma) (p - g)."""
    for w, t in zip(params, g, strict=True):
        w.grad = t.clone()
    base.step()
    with torch.no_grad():
        for w, a, b, lr in zip(params, g, p, lrs, strict=True):
            w -= lr * factor * (b - a)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("m", [None, 3])
def test_decoupled_sharpness_steps_beside_the_optimizer(optimizer, m):
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(5)]
    base, plain = optimizer(one.parameters()), optimizer(two.parameters())
    train(one, SAM(one, rho=0.3, m=m, combine=DecoupledWeighted(0.8, base)), base, batches)
    for batch in batches:
        g, p = both(two, batch, rho=0.3, m=m)
        lr = plain.param_groups[0]["lr"]
        decoupled_by_hand(list(two.parameters()), plain, g, p, 4.0, [lr] * 4)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-10


def test_decoupled_sharpness_has_the_learning_rate_of_each_group_at_the_time():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(4)]
    bases = [
        sgd([{"params": net[0].parameters(), "lr": 0.2}, {"params": net[2].parameters(), "lr": 0.01}])
        for net in (one, two)
    ]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(base, 0.5) for base in bases]
    sam = SAM(one, rho=0.3, combine=DecoupledWeighted(0.8, bases[0]))
    for i, batch in enumerate(batches):
        train(one, sam, bases[0], [batch])
        lrs = [0.2 * 0.5**i] * 2 + [0.01 * 0.5**i] * 2
        decoupled_by_hand(list(two.parameters()), bases[1], *both(two, batch, rho=0.3), 4.0, lrs)
        for schedule in schedules:
            schedule.step()
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-11


def test_decoupled_sharpness_is_accumulated_over_calls():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(6)]
    base, plain = sgd(one.parameters()), sgd(two.parameters())
    sam = SAM(one, rho=0.3, combine=DecoupledWeighted(0.8, base))
    for i in range(0, 6, 2):
        base.zero_grad()
        for batch, share in zip(batches[i : i + 2], (0.25, 0.75), strict=True):
            sam.backward(functools.partial(squared, one), *batch, scale=share)
        base.step()
        pairs = [both(two, batch, rho=0.3) for batch in batches[i : i + 2]]
        g, p = ([0.25 * s + 0.75 * t for s, t in zip(*k, strict=True)] for k in zip(*pairs, strict=True))
        decoupled_by_hand(list(two.parameters()), plain, g, p, 4.0, [0.05] * 4)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-11


def test_clipping_acts_on_the_gradient_and_not_on_the_decoupled_sharpness():
    module, batch = mlp(), regression()
    start = [w.detach().clone() for w in module.parameters()]
    g, p = both(module, batch, rho=0.3)
    base = sgd(module.parameters(), lr=1.0, momentum=0.0)
    SAM(module, rho=0.3, combine=DecoupledWeighted(0.8, base)).backward(
        functools.partial(squared, module), *batch
    )
    assert relative_error([w.grad for w in module.parameters()], g) < 1e-12
    clipped = [t * (0.01 / norm(g)) for t in g]
    nn.utils.clip_grad_norm_(module.parameters(), 0.01)
    base.step()
    moves = [s - w.detach() for s, w in zip(start, module.parameters(), strict=True)]
    expected = [c + 4.0 * (b - a) for c, a, b in zip(clipped, g, p, strict=True)]
    assert relative_error(moves, expected) < 1e-4


def test_gradscaler_scales_the_gradient_but_not_the_decoupled_sharpness_and_skips_both():
    one, two = mlp(dtype=torch.float32), mlp(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    bases = [sgd(net.parameters()) for net in (one, two)]
    sams = [
        SAM(net, rho=0.3, m=3, combine=DecoupledWeighted(0.8, base))
        for net, base in zip((one, two), bases, strict=True)
    ]
    for step in range(6):
        x, y = regression(step, dtype=torch.float32)
        overflow = step in (2, 5)
        before = identity(one)
        bases[0].zero_grad()
        data = (x * float("inf") if overflow else x, y)
        sams[0].backward(functools.partial(squared, one), *data, scale=scaler)
        scaler.step(bases[0])
        scaler.update()
        if overflow:
            assert identity(one) == before
            continue
        train(two, sams[1], bases[1], [(x, y)])
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-5


def test_sharpness_that_overflowed_in_the_second_pass_alone_is_dropped_with_the_step():
    """The gradient at w is finite, so that nothing in .grad tells the scaler of the overflow at w + e."""
    a, b = (nn.Parameter(t) for t in tensors(0, (3,), (2,)))
    base, calls = sgd([a, b]), []
    sam = SAM([a, b], rho=0.3, combine=DecoupledWeighted(0.8, base))

    def loss(x):
        calls.append(None)
        value = (a.square().sum() + b.square().sum()) * x.mean()
        return value * float("inf") if len(calls) == 2 else value

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(2):
        base.zero_grad()
        sam.backward(loss, torch.ones(2), scale=scaler)
        scaler.step(base)
        scaler.update()
        assert all(p.isfinite().all() for p in (a, b))


def test_sharpness_of_a_step_that_was_not_taken_is_forgotten():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(3)]
    bases = [sgd(net.parameters()) for net in (one, two)]
    sams = [
        SAM(net, rho=0.3, combine=DecoupledWeighted(0.8, base))
        for net, base in zip((one, two), bases, strict=True)
    ]
    for i, batch in enumerate(batches):
        bases[0].zero_grad()
        sams[0].backward(functools.partial(squared, one), *batch)
        if i != 1:
            bases[0].step()
    train(two, sams[1], bases[1], [batches[0], batches[2]])
    assert same(one, two)


def test_sharpness_is_applied_once():
    module, batch = mlp(), regression()
    base = sgd(module.parameters(), momentum=0.0)
    train(module, SAM(module, rho=0.3, combine=DecoupledWeighted(0.8, base)), base, [batch])
    before = identity(module)
    base.zero_grad()
    base.step()
    assert identity(module) == before


def test_objective_refuses_decoupled_sharpness():
    module, batch = mlp(), regression()
    sam = SAM(module, rho=0.3, combine=DecoupledWeighted(0.8, sgd(module.parameters())))
    with pytest.raises(ValueError, match=r"^DecoupledWeighted must be used with backward, got objective\.$"):
        sam.objective(functools.partial(squared, module), *batch)


def look_by_hand(module, base, batches, *, rho, k, alpha, m=None):
    """LookSAM: SAM's gradient every k-th step, whose part across g is g_v; else g + alpha |g| g_v / |g_v|."""
    for step, batch in enumerate(batches):
        g, p = both(module, batch, rho=rho, m=m)
        if step % k == 0:
            v, found = orthogonal(p, g), p
        else:
            found = added(g, v, alpha * norm(g) / norm(v))
        for w, t in zip(module.parameters(), found, strict=True):
            w.grad = t
        base.step()


def groups(optimizer):
    """The same optimizer with a parameter group for each layer."""

    def make(net):
        rates = (0.05, 0.02) if optimizer is sgd else (0.01, 0.003)
        layers = zip((net[0], net[2]), rates, strict=True)
        return optimizer([{"params": list(layer.parameters()), "lr": lr} for layer, lr in layers])

    return make


@pytest.mark.parametrize(("k", "m"), [(1, None), (2, 3), (3, None), (3, 3)])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("several_groups", [False, True])
def test_look_training_is_that_of_the_formula(k, m, optimizer, several_groups):
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(7)]
    make = groups(optimizer) if several_groups else lambda net: optimizer(net.parameters())
    train(one, SAM(one, rho=0.3, m=m, combine=Look(k, 0.7)), make(one), batches)
    look_by_hand(two, make(two), batches, rho=0.3, k=k, alpha=0.7, m=m)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-10


def test_look_of_parameter_groups_is_that_of_the_module():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(7)]
    bases = [groups(sgd)(net) for net in (one, two)]
    train(one, SAM(one, rho=0.3, combine=Look(3)), bases[0], batches)
    train(two, SAM(bases[1].param_groups, rho=0.3, combine=Look(3)), bases[1], batches)
    assert same(one, two)


@pytest.mark.parametrize("m", [None, 3])
@pytest.mark.parametrize(("k", "climbs"), [(1, 7), (2, 4), (3, 3), (7, 1)])
def test_look_saves_the_passes_of_the_steps_in_between(m, k, climbs):
    module, batches, calls = mlp(), [regression(i) for i in range(7)], []

    def counted(net, x, y):
        calls.append(len(x))
        return squared(net, x, y)

    sam, base = SAM(module, rho=0.3, m=m, combine=Look(k)), sgd(module.parameters())
    for batch in batches:
        base.zero_grad()
        sam.backward(functools.partial(counted, module), *batch)
        base.step()
    assert len(calls) == (7 + climbs) * (1 if m is None else 3)
    assert sum(calls) == (7 + climbs) * 7


def test_look_climbs_and_reuses_in_all_calls_of_an_accumulated_step():
    module, calls = mlp(), []

    def counted(x, y):
        calls.append(None)
        return squared(module, x, y)

    sam, base, made = SAM(module, rho=0.3, combine=Look(2)), sgd(module.parameters()), []
    for step in range(4):
        base.zero_grad()
        calls.clear()
        for part in range(3):
            sam.backward(counted, *regression(10 * step + part), scale=1 / 3)
        made.append(len(calls))
        base.step()
    assert made == [6, 3, 6, 3]
    assert sam.steps_done == 4


def test_look_keeps_the_unscaled_direction_and_scales_what_it_reuses():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(4)]
    sams = [SAM(net, rho=0.3, combine=Look(2)) for net in (one, two)]
    for i, batch in enumerate(batches):
        for net, sam, scale in ((one, sams[0], 1.0), (two, sams[1], 2.0 ** (i + 3))):
            net.zero_grad()
            sam.backward(functools.partial(squared, net), *batch, scale=scale)
        found = [p.grad / 2.0 ** (i + 3) for p in two.parameters()]
        assert relative_error(found, [p.grad for p in one.parameters()]) < 1e-12


@pytest.mark.parametrize("overflow", [1, 2])
def test_look_with_nothing_to_reuse_climbs_at_the_next_step(overflow):
    """One of the first step's two passes overflows; the second step climbs in its place."""
    module, batch, calls = mlp(), regression(), []

    def loss(x, y):
        calls.append(None)
        return squared(module, x, y) * (float("inf") if len(calls) == overflow else 1.0)

    sam, finite = SAM(module, rho=0.3, combine=Look(5)), []
    for _ in range(3):
        module.zero_grad()
        sam.backward(loss, *batch)
        finite.append(all(p.grad.isfinite().all().item() for p in module.parameters()))
    assert len(calls) == overflow + 2 + 1
    assert finite == [False, True, True]


@pytest.mark.parametrize("overflow", [1, 2])
def test_look_keeps_its_direction_through_an_overflow(overflow):
    """One of the passes of step 2, the second climb, overflows, and the step is skipped."""
    one, two = mlp(), mlp()
    good, calls = [regression(i) for i in range(3)], []

    def overflows(x, y):
        calls.append(None)
        return squared(one, x, y) * (float("inf") if len(calls) == overflow else 1.0)

    sam, base = SAM(one, rho=0.3, combine=Look(2)), sgd(one.parameters())
    train(one, sam, base, good[:2])
    base.zero_grad()
    sam.backward(overflows, *regression(9))
    assert len(calls) == overflow
    assert not all(p.grad.isfinite().all() for p in one.parameters())
    train(one, sam, base, good[2:])
    g, p = both(two, good[0], rho=0.3)
    v, plain = orthogonal(p, g), sgd(two.parameters())
    for step, batch in enumerate(good):
        g, p = both(two, batch, rho=0.3)
        found = p if step == 0 else added(g, v, 0.7 * norm(g) / norm(v))
        for w, t in zip(two.parameters(), found, strict=True):
            w.grad = t
        plain.step()
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_look_reuses_no_direction_that_is_rounding_alone(dtype):
    """On |w|^2 / 2 the two gradients are parallel, so that all of SAM's are along w."""
    a, b = (nn.Parameter(t) for t in tensors(0, (3,), (4,), dtype=dtype))
    sam = SAM([a, b], rho=0.1, combine=Look(3, 0.7))
    for _ in range(2):
        a.grad = b.grad = None
        sam.backward(lambda x: 0.5 * (a.square().sum() + b.square().sum()) * x.mean(), torch.ones(2).to(a))
    g, w = [a.grad, b.grad], [a.detach(), b.detach()]
    assert relative_error([t / norm(g) for t in g], [t / norm(w) for t in w]) < 1e-3


def test_look_state_round_trip_between_two_climbs_continues_identically():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(8)]
    sam, base = SAM(one, rho=0.3, combine=Look(4)), sgd(one.parameters())
    train(one, sam, base, batches[:2])
    file = io.BytesIO()
    torch.save([one.state_dict(), base.state_dict(), sam.state_dict()], file)
    train(one, sam, base, batches[2:])
    resumed, other = SAM(two, rho=0.3, combine=Look(4)), sgd(two.parameters())
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    for part, state in zip((two, other, resumed), states, strict=True):
        part.load_state_dict(state)
    train(two, resumed, other, batches[2:])
    assert same(one, two)


def test_look_refuses_other_parameters_than_it_climbed_with():
    module, batch, look = mlp(), regression(), Look(3)
    assert isinstance(look, Part)
    sam = SAM(module, rho=0.3, combine=look)
    sam.backward(functools.partial(squared, module), *batch)
    module.zero_grad()
    module[0].weight.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"^Look must see the parameters that it climbed with, .*, got .*\.$"
    ):
        sam.backward(functools.partial(squared, module), *batch)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("k", [0, -1, 2.0, True])
def test_look_refuses_a_k_that_is_no_positive_whole_number(k):
    with pytest.raises(ValueError, match=r"^k must be a positive whole number, got .*\.$"):
        Look(k)
