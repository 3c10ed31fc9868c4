"""Climbs along what is new in the gradient, and with a random part of the weights."""

import functools
import io
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lowland import SAM, Unnormalized
from lowland.sam import Friendly, Random, RandomSubset, RememberingAscent

from .naive import (
    added,
    identity,
    mlp,
    naive_sam,
    norm,
    num_examples,
    regression,
    relative_error,
    rows,
    squared,
    tensors,
    value_and_gradient,
)

modest = settings(max_examples=6, deadline=None)


class NaiveFriendly:
    """F-SAM: d = g - sigma mu, e = rho d / |d|; mu averages each call's mean gradient afterwards."""

    def __init__(self, sigma, lam):
        self.sigma, self.lam, self.mu = sigma, lam, None

    def gradient(self, module, batch, *, rho, m=None, normalized=True):
        w = [p.detach().clone() for p in module.parameters()]
        total = num_examples(batch)
        m = m or total
        gradient, mean = ([torch.zeros_like(p) for p in w] for _ in range(2))
        for start in range(0, total, m):
            group = rows(batch, start, start + m)
            share = num_examples(group) / total
            _, g = value_and_gradient(module, squared, group, w)
            d = g if self.mu is None else added(g, self.mu, -self.sigma)
            e = [rho * t / (norm(d) if normalized else 1.0) for t in d]
            _, perturbed = value_and_gradient(module, squared, group, added(w, e))
            gradient, mean = added(gradient, perturbed, share), added(mean, g, share)
        if self.mu is None:
            self.mu = mean
        else:
            self.mu = added([self.lam * t for t in self.mu], mean, 1 - self.lam)
        return gradient


def train(module, sam, base, batches):
    for batch in batches:
        base.zero_grad()
        sam.backward(functools.partial(squared, module), *batch)
        base.step()


def train_naive(module, naive, base, batches, **options):
    for batch in batches:
        gradient = naive.gradient(module, batch, **options)
        for p, g in zip(module.parameters(), gradient, strict=True):
            p.grad = g
        base.step()


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


@modest
@given(st.floats(-1.0, 2.0), st.floats(0.0, 1.0), st.sampled_from([None, 3, 1]), st.integers(0, 9))
def test_friendly_training_is_that_of_the_recursion(sigma, lam, m, seed):
    one, two = mlp(seed), mlp(seed)
    batches = [regression(seed + i) for i in range(6)]
    train(one, SAM(one, rho=0.3, m=m, ascent=Friendly(sigma, lam)), sgd(one), batches)
    train_naive(two, NaiveFriendly(sigma, lam), sgd(two), batches, rho=0.3, m=m)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-9


def test_friendly_differs_from_sam_from_the_second_step_on():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(2)]
    train(one, SAM(one, rho=0.3, ascent=Friendly()), sgd(one), batches[:1])
    train(two, SAM(two, rho=0.3), sgd(two), batches[:1])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    sam = SAM(one, rho=0.3, ascent=Friendly())
    train(one, sam, sgd(one), batches)
    train(two, SAM(two, rho=0.3), sgd(two), batches)
    assert relative_error(list(one.parameters()), list(two.parameters())) > 1e-4


def test_friendly_climbs_along_the_difference_with_the_ascent_it_was_given():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(4)]
    friendly = Friendly(0.7, 0.8, Unnormalized())
    train(one, SAM(one, rho=0.3, m=3, ascent=friendly), sgd(one), batches)
    train_naive(two, NaiveFriendly(0.7, 0.8), sgd(two), batches, rho=0.3, m=3, normalized=False)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-11


def test_scale_of_the_loss_is_not_in_the_friendly_average():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(4)]
    sams = [SAM(module, rho=0.3, m=3, ascent=Friendly()) for module in (one, two)]
    for i, batch in enumerate(batches):
        for sam, module, scale in ((sams[0], one, 1.0), (sams[1], two, 4.0**i)):
            module.zero_grad()
            sam.backward(functools.partial(squared, module), *batch, scale=scale)
    found = [p.grad / 4.0**3 for p in two.parameters()]
    assert relative_error(found, [p.grad for p in one.parameters()]) < 1e-12


@pytest.mark.parametrize(("bad", "m"), [(float("inf"), None), (float("nan"), 3)])
@pytest.mark.parametrize("first", [True, False])
def test_non_finite_gradients_do_not_enter_the_friendly_average(bad, m, first):
    """The step of a poisoned batch is skipped; all goes on as if it had not been."""
    one, two = mlp(), mlp()
    good, (x, y) = [regression(i) for i in range(4)], regression(9)
    x[0, 0] = bad
    batches = [(x, y), *good] if first else [*good[:2], (x, y), *good[2:]]
    sams = [SAM(module, rho=0.3, m=m, ascent=Friendly()) for module in (one, two)]
    bases = [sgd(one), sgd(two)]
    for batch in batches:
        one.zero_grad()
        sams[0].backward(functools.partial(squared, one), *batch)
        if all(p.grad.isfinite().all() for p in one.parameters()):
            bases[0].step()
    train(two, sams[1], bases[1], good)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_steps_at_radius_zero_do_not_enter_the_friendly_average():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(3)]
    sam = SAM(one, rho=lambda step: 0.0 if step == 1 else 0.3, ascent=Friendly())
    train(one, sam, sgd(one), batches)
    naive, base = NaiveFriendly(1.0, 0.9), sgd(two)
    train_naive(two, naive, base, batches[:1], rho=0.3)
    train_naive(two, NaiveFriendly(0.0, 0.0), base, batches[1:2], rho=0.0)
    train_naive(two, naive, base, batches[2:], rho=0.3)
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-11


@pytest.mark.parametrize("m", [2, 4, None])
def test_friendly_average_is_that_of_the_examples_the_climb_saw(m):
    """Groups that share a climb's examples do not count them twice: five groups of two share two here."""
    module, batch, other = mlp(), regression(0, examples=9), regression(1, examples=4)
    friendly = Friendly(sigma=1.0, lam=0.9)
    sam = SAM(module, rho=0.3, m=m, ascent=friendly, engine="loop")
    sam.backward(functools.partial(squared, module), *batch, ascent_batch=other)
    w = [p.detach() for p in module.parameters()]
    _, g = value_and_gradient(module, squared, other, w)
    assert relative_error(friendly.state_dict()["average"], g) < 1e-13


def test_friendly_state_round_trip_continues_identically():
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(6)]
    sam, base = SAM(one, rho=0.3, m=3, ascent=Friendly()), sgd(one)
    train(one, sam, base, batches[:3])
    file = io.BytesIO()
    torch.save([one.state_dict(), base.state_dict(), sam.state_dict()], file)
    train(one, sam, base, batches[3:])
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed, other = SAM(two, rho=0.3, m=3, ascent=Friendly()), sgd(two)
    for part, state in zip((two, other, resumed), states, strict=True):
        part.load_state_dict(state)
    train(two, resumed, other, batches[3:])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_friendly_state_is_a_copy_that_training_does_not_change():
    module, batch, friendly = mlp(), regression(), Friendly()
    sam = SAM(module, rho=0.3, ascent=friendly)
    assert friendly.state_dict() == {"average": None}
    train(module, sam, sgd(module), [batch])
    state = friendly.state_dict()
    before = [t.clone() for t in state["average"]]
    train(module, sam, sgd(module), [batch])
    other = Friendly()
    other.load_state_dict(state)
    train(module, SAM(module, rho=0.3, ascent=other), sgd(module), [batch])
    assert all(torch.equal(a, b) for a, b in zip(state["average"], before, strict=True))


def test_gradient_itself_is_not_written_to_by_friendly():
    """At radius so small that nothing moves, the gradient that comes back is the plain one."""
    one, two, batches = mlp(), mlp(), [regression(i) for i in range(3)]
    train(one, SAM(one, rho=1e-300, ascent=Friendly()), sgd(one), batches)
    train(two, SAM(two, rho=0.0), sgd(two), batches)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_average_follows_the_chosen_parameters_and_refuses_others():
    module, batch = mlp(), regression()
    friendly = Friendly()
    train(module, SAM(module, rho=0.3, perturb="2.*", ascent=friendly), sgd(module), [batch])
    assert [tuple(t.shape) for t in friendly.state_dict()["average"]] == [(3, 6), (3,)]
    before = identity(module)
    with pytest.raises(
        ValueError, match=r"^Friendly must see the parameters that it averaged, .*, got .*\.$"
    ):
        train(module, SAM(module, rho=0.3, ascent=friendly), sgd(module), [batch])
    assert identity(module) == before


@pytest.mark.usefixtures("untyped")
def test_friendly_arguments_are_refused_by_message():
    assert isinstance(Friendly(), RememberingAscent)
    with pytest.raises(ValueError, match=r"^lam must be between 0 and 1, got 1\.5\.$"):
        Friendly(lam=1.5)
    for inner, name in ((Random(), "Random"), (Friendly(), "Friendly")):
        message = f"Friendly needs an ascent that climbs and remembers nothing, got {name}."
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            Friendly(ascent=inner)


def perturbation(module, batch, count=1, **options):
    """Perturbations of ``count`` calls of one group each."""
    start, seen = [p.detach().clone() for p in module.parameters()], []

    def loss(x, y):
        seen.append([p.detach() - s for p, s in zip(module.parameters(), start, strict=True)])
        return squared(module, x, y)

    sam = SAM(module, **options)
    for _ in range(count):
        sam.backward(loss, *batch)
    return seen[1::2]


def test_subset_keeps_a_share_of_the_weights_scaled_so_that_the_mean_is_the_whole():
    """The mean over n draws of b / beta has the standard error sqrt((1 - beta) / (beta n)) per weight."""
    module, batch, beta = mlp(), regression(), 0.3
    (whole,) = naive_sam(module, squared, batch, rho=0.3).perturbations
    torch.manual_seed(0)
    draws = perturbation(module, batch, 100, rho=0.3, ascent=RandomSubset(beta))
    for e in draws:
        for t, h in zip(e, whole, strict=True):
            assert torch.all((t == 0) | ((t - h / beta).abs() < 1e-12))
    moved = torch.stack([torch.cat([(t != 0).flatten() for t in e]) for e in draws]).double()
    error = math.sqrt(beta * (1 - beta))
    assert abs(moved.mean().item() - beta) < 4 * error / math.sqrt(moved.numel())
    assert (moved.mean(0) - beta).abs().max().item() < 5 * error / math.sqrt(100)
    mean = [sum(e[i] for e in draws) / 100 for i in range(4)]
    assert relative_error(mean, whole) < 1.5 * math.sqrt((1 - beta) / beta / 100)


def test_subset_of_all_weights_is_the_other_ascent():
    module, batch = mlp(), regression()
    for ascent, name in ((RandomSubset(1.0), "l2"), (RandomSubset(1.0, Unnormalized()), "unnormalized")):
        module.zero_grad()
        SAM(module, rho=0.3, m=3, ascent=ascent).backward(functools.partial(squared, module), *batch)
        expected = naive_sam(module, squared, batch, rho=0.3, m=3, ascent=name).gradients
        assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


def test_subset_is_drawn_anew_for_every_group_and_step_and_by_the_seed():
    a, b = (nn.Parameter(t) for t in tensors(0, (40,), (5, 8)))
    seen = []

    def loss(x):
        seen.append(torch.cat([a.detach(), b.detach().flatten()]))
        return (a.sum() + b.sum()) * x.mean()

    def masks(seed):
        seen.clear()
        torch.manual_seed(seed)
        sam = SAM([a, b], rho=0.3, m=2, ascent=RandomSubset(0.5))
        for _ in range(2):
            sam.backward(loss, torch.ones(4))
        assert len(seen) == 8, "two passes for each of two groups and two steps"
        return torch.stack([after != before for before, after in zip(seen[::2], seen[1::2], strict=True)])

    one, again, other = masks(0), masks(0), masks(1)
    assert torch.equal(one, again)
    assert len(torch.cat([one, other]).unique(dim=0)) == 8
    assert not torch.equal(one[:, :40], one[:, 40:]), "one mask for each tensor"


def test_dropout_of_both_passes_is_the_same_beside_a_subset():
    module, batch, masks = mlp(), regression(), []

    def loss(x, y):
        masks.append(F.dropout(torch.ones_like(x), 0.5))
        return squared(module, x * masks[-1], y)

    SAM(module, rho=0.3, m=3, ascent=RandomSubset(0.5)).backward(loss, *batch)
    assert len(masks) == 6
    assert all(torch.equal(a, b) for a, b in zip(masks[::2], masks[1::2], strict=True))
    assert not torch.equal(masks[0], masks[2])


def test_friendly_around_a_subset_moves_part_of_the_weights():
    module, batches = mlp(), [regression(i) for i in range(3)]
    friendly = Friendly(ascent=RandomSubset(0.5))
    train(module, SAM(module, rho=0.3, ascent=friendly), sgd(module), batches)
    (e,) = perturbation(module, batches[0], rho=0.3, ascent=friendly)
    moved = torch.cat([(t != 0).flatten() for t in e])
    assert 0.2 < moved.double().mean().item() < 0.8


@pytest.mark.usefixtures("untyped")
def test_subset_arguments_are_refused_by_message():
    for beta in (0.0, -0.5, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"^beta must be above 0 and at most 1, got .*\.$"):
            RandomSubset(beta)
    message = (
        r"^RandomSubset must stand inside Friendly, Friendly\(ascent=RandomSubset\(...\)\), got it outside\.$"
    )
    with pytest.raises(TypeError, match=message):
        RandomSubset(0.5, Friendly())
    with pytest.raises(TypeError, match=r"^RandomSubset needs an ascent along the gradient, got Random\.$"):
        RandomSubset(0.5, Random())
