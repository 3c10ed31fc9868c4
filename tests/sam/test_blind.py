"""Perturbations that need no gradient: drawn at random, and along the optimizer's momentum."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowland import SAM
from lowland.sam import AlongMomentum, BlindAscent, Random

from .naive import (
    added,
    identity,
    mlp,
    norm,
    regression,
    relative_error,
    squared,
    tensors,
    value_and_gradient,
)

# These tests watch the passes of each group by itself.
SAM = functools.partial(SAM, engine="loop")


def spy(module, seen, loss=squared):
    """The loss, which notes where the weights stand in each pass."""

    def spied(*group):
        seen.append([p.detach().clone() for p in module.parameters()])
        return loss(module, *group)

    return spied


def moved(module, seen):
    """The perturbations of the passes that were seen."""
    return [[a - p.detach() for a, p in zip(at, module.parameters(), strict=True)] for at in seen]


def flat(e):
    return torch.cat([t.flatten() for t in e])


RANDOMS = [Random(d, s) for d in ("gaussian", "uniform") for s in ("additive", "multiplicative")]


@pytest.mark.parametrize("ascent", RANDOMS, ids=lambda r: f"{r.distribution}-{r.scaling}")
def test_mean_square_length_is_the_radius_squared(ascent):
    """4000 weights in two tensors: the mean over draws of |z|^2 / p is 1 with a standard error below 0.01."""
    a, b = (nn.Parameter(2.0 * t) for t in tensors(0, (3000,), (20, 50)))
    seen = []

    def loss(x):
        seen.append(torch.cat([a.detach(), b.detach().flatten()]))
        return (a.sum() + b.sum()) * x.mean()

    torch.manual_seed(0)
    SAM([a, b], rho=0.5, m=1, ascent=ascent).backward(loss, torch.ones(8))
    w = torch.cat([a.detach(), b.detach().flatten()])
    e = torch.stack([s - w for s in seen])
    e = e / w.abs() if ascent.scaling == "multiplicative" else e
    z = e * math.sqrt(4000) / 0.5
    assert z.square().sum(1).mean().item() == pytest.approx(4000, rel=0.05)
    assert abs(z.mean().item()) < 0.02
    if ascent.distribution == "uniform":
        assert z.abs().max().item() == pytest.approx(math.sqrt(3), rel=1e-3)
        assert z.pow(4).mean().item() == pytest.approx(9 / 5, rel=0.05)
    else:
        assert z.pow(4).mean().item() == pytest.approx(3.0, rel=0.1)


def test_draws_do_not_depend_on_the_weight_if_additive_and_scale_with_its_size_if_multiplicative():
    module, batch = mlp(), regression()
    e = {}
    for scaling in ("additive", "multiplicative"):
        seen = []
        torch.manual_seed(3)
        ascent = Random(scaling=scaling)
        SAM(module, rho=0.3, ascent=ascent).backward(spy(module, seen), *batch)
        (e[scaling],) = moved(module, seen)
    expected = [w.detach().abs() * t for w, t in zip(module.parameters(), e["additive"], strict=True)]
    assert relative_error(e["multiplicative"], expected) < 1e-12


def test_gradient_is_that_at_the_drawn_point_averaged_over_groups():
    module, batch, seen = mlp(), regression(), []
    value = SAM(module, rho=0.3, m=3, ascent=Random()).backward(spy(module, seen), *batch)
    expected, loss = [torch.zeros_like(p) for p in module.parameters()], 0.0
    for at, start, size in zip(seen, (0, 3, 6), (3, 3, 1), strict=True):
        group = tuple(t[start : start + size] for t in batch)
        at_point, g = value_and_gradient(module, squared, group, at)
        expected, loss = added(expected, g, size / 7), loss + at_point * size / 7
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-13
    assert value.item() == pytest.approx(loss, rel=1e-13)


def test_every_group_and_every_step_draws_anew_with_one_pass_each():
    module, batch, seen = mlp(), regression(), []
    sam = SAM(module, rho=0.3, m=3, ascent=Random())
    for _ in range(2):
        sam.backward(spy(module, seen), *batch)
    draws = [flat(e) for e in moved(module, seen)]
    assert len(draws) == 6
    assert min(norm([a - b]) for i, a in enumerate(draws) for b in draws[:i]) > 0.1


def test_seed_of_the_default_generator_decides_the_draws():
    module, batch = mlp(), regression()

    def gradient(seed):
        module.zero_grad()
        torch.manual_seed(seed)
        SAM(module, rho=0.3, m=3, ascent=Random()).backward(functools.partial(squared, module), *batch)
        return [p.grad.clone() for p in module.parameters()]

    one, again, other = gradient(1), gradient(1), gradient(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert relative_error(other, one) > 1e-3


def test_default_generator_moves_by_one_draw_and_not_at_radius_zero():
    module, batch = mlp(), regression()
    torch.manual_seed(0)
    torch.randint(2**62, ())
    after_one = torch.get_rng_state()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    SAM(module, rho=0.0, m=3, ascent=Random()).backward(functools.partial(squared, module), *batch)
    assert torch.equal(torch.get_rng_state(), before)
    SAM(module, rho=0.3, m=3, ascent=Random()).backward(functools.partial(squared, module), *batch)
    assert torch.equal(torch.get_rng_state(), after_one)


def test_dropout_is_drawn_apart_from_the_perturbation_and_alike_in_both_passes():
    """With a rule there are two passes; their masks are equal, and those after one draw of the seed."""
    module, batch, masks = mlp(), regression(), []

    def loss(x, y):
        masks.append(F.dropout(torch.ones_like(x), 0.5))
        return squared(module, x * masks[-1], y)

    torch.manual_seed(0)
    sam = SAM(module, rho=0.3, m=3, ascent=Random(), combine=lambda _, perturbed: list(perturbed))
    sam.backward(loss, *batch)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    torch.randint(2**62, ())
    expected = [F.dropout(torch.ones_like(x), 0.5) for x in batch[0].split(3)]
    assert torch.equal(after, torch.get_rng_state())
    assert len(masks) == 6
    assert all(torch.equal(a, expected[i // 2]) for i, a in enumerate(masks))


def test_only_chosen_parameters_are_drawn_and_the_radius_is_theirs():
    module, batch = mlp(), regression()
    lengths, seen = [], []
    for _ in range(100):
        SAM(module, rho=0.3, perturb="*.bias", ascent=Random()).backward(spy(module, seen), *batch)
    for e in moved(module, seen):
        assert not e[0].any()
        assert not e[2].any()
        lengths.append(norm(e) ** 2)
    assert sum(lengths) / 100 == pytest.approx(0.3**2, rel=0.25)  # 9 weights: standard error 5 %


def test_weights_come_back_bit_for_bit_after_a_random_perturbation():
    module, batch = mlp(), regression()
    before = identity(module)
    for ascent in RANDOMS:
        SAM(module, rho=3.0, m=2, ascent=ascent).backward(functools.partial(squared, module), *batch)
    assert identity(module) == before


@pytest.mark.usefixtures("untyped")
def test_unknown_distributions_and_scalings_are_refused():
    with pytest.raises(ValueError, match=r"^distribution must be one of .*, got 'cauchy'\.$"):
        Random("cauchy")
    with pytest.raises(ValueError, match=r"^scaling must be one of .*, got 'relative'\.$"):
        Random(scaling="relative")


@pytest.mark.parametrize("ascent", [Random(), "momentum"])
def test_what_needs_a_gradient_is_refused(ascent):
    module, batch = mlp(), regression()
    if ascent == "momentum":
        ascent = AlongMomentum(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9))
    assert isinstance(ascent, BlindAscent)
    name = type(ascent).__name__
    loss = functools.partial(squared, module)
    with pytest.raises(ValueError, match=rf"^steps must be 1 with {name}, which needs no gradient, got 2\.$"):
        SAM(module, rho=0.1, ascent=ascent, steps=2).backward(loss, *batch)
    with pytest.raises(ValueError, match=rf"^ascent_batch must be None with {name}, .*, got a batch\.$"):
        SAM(module, rho=0.1, ascent=ascent).backward(loss, *batch, ascent_batch=regression(3))


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3)


def nesterov(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True)


def adamw(params):
    return torch.optim.AdamW(params, lr=0.01)


def naive_momentum_sam(module, batch, make, *, rho, steps):
    """MSAM with a momentum kept here: SGD's v <- 0.9 v + g + decay w, Adam's v <- 0.9 v + 0.1 g."""
    params = list(module.parameters())
    base = make(params)
    decay = 1e-3 if make is sgd else 0.0
    v = None
    for _ in range(steps):
        w = [p.detach().clone() for p in params]
        at = w if v is None else added(w, v, -rho / norm(v))
        _, g = value_and_gradient(module, squared, batch, at)
        for p, t in zip(params, g, strict=True):
            p.grad = t.clone()
        base.step()
        g = added(g, w, decay)
        if make is adamw:
            v = [0.1 * t for t in g] if v is None else added([0.9 * t for t in v], g, 0.1)
        else:
            v = g if v is None else added([0.9 * t for t in v], g)


@pytest.mark.parametrize("make", [sgd, nesterov, adamw])
def test_training_along_the_momentum_is_that_of_the_formula(make):
    one, two, batch = mlp(), mlp(), regression()
    base, calls = make(one.parameters()), []
    sam = SAM(one, rho=0.3, ascent=AlongMomentum(base))
    for _ in range(8):
        base.zero_grad()
        sam.backward(spy(one, calls), *batch)
        base.step()
    naive_momentum_sam(two, batch, make, rho=0.3, steps=8)
    assert len(calls) == 8, "one pass a step"
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-12
    three = mlp()
    naive_momentum_sam(three, batch, make, rho=0.0, steps=8)
    assert relative_error(list(two.parameters()), list(three.parameters())) > 1e-4


@pytest.mark.parametrize("make", [sgd, adamw])
def test_perturbation_has_the_radius_and_is_against_the_momentum_over_all_tensors(make):
    module, batch, seen = mlp(), regression(), []
    base = make(module.parameters())
    sam = SAM(module, rho=0.3, m=3, ascent=AlongMomentum(base))
    sam.backward(spy(module, seen), *batch)
    assert len(seen) == 3
    assert all(norm(e) == 0 for e in moved(module, seen)), "there is no momentum before the first step"
    base.step()
    seen.clear()
    key = "exp_avg" if make is adamw else "momentum_buffer"
    v = [base.state[p][key].clone() for p in module.parameters()]
    sam.backward(spy(module, seen), *batch)
    for e in moved(module, seen):
        assert relative_error(e, [-0.3 * t / norm(v) for t in v]) < 1e-12
    assert all(torch.equal(base.state[p][key], t) for p, t in zip(module.parameters(), v, strict=True))


def test_momentum_of_chosen_parameters_only_is_normalized():
    module, batch, seen = mlp(), regression(), []
    base = sgd(module.parameters())
    sam = SAM(module, rho=0.3, perturb="2.*", ascent=AlongMomentum(base))
    for _ in range(2):
        base.zero_grad()
        seen.clear()
        sam.backward(spy(module, seen), *batch)
        (e,) = moved(module, seen)
        base.step()
    assert not e[0].any()
    assert not e[1].any()
    assert norm(e) == pytest.approx(0.3, rel=1e-12)


def test_momentum_of_zero_length_perturbs_nothing():
    a, b = (nn.Parameter(t) for t in tensors(0, (3,), (2,)))
    base = torch.optim.SGD([a, b], lr=0.1, momentum=0.9)
    before = identity([a, b])
    for _ in range(2):
        SAM([a, b], rho=0.3, ascent=AlongMomentum(base)).backward(
            lambda x: 0.0 * (a.sum() + b.sum()) * x.mean(), torch.ones(2)
        )
        base.step()
    assert identity([a, b]) == before


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.RMSprop, lr=0.01),
        functools.partial(torch.optim.Adagrad, lr=0.01),
        functools.partial(torch.optim.SGD, lr=0.01),
    ],
    ids=["rmsprop", "adagrad", "sgd"],
)
def test_optimizer_without_momentum_is_refused(make):
    """Otherwise training would silently be that of the optimizer alone."""
    module, batch = mlp(), regression()
    base = make(module.parameters())

    def train():
        sam = SAM(module, rho=0.3, ascent=AlongMomentum(base))
        for _ in range(2):
            base.zero_grad()
            sam.backward(functools.partial(squared, module), *batch)
            base.step()

    with pytest.raises(ValueError, match=r"^the optimizer must keep a momentum_buffer or exp_avg, got .*\.$"):
        train()
