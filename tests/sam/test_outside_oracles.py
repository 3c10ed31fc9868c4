"""Whole trainings against those of ``pytorch_optimizer``, where its variant is the paper's.

Its global norm is rounded to float32, so that radii agree to about 1e-7 only, and trainings not to
float64's digits. What it gets otherwise is said beside each test.
"""

import functools

import pytest
import pytorch_optimizer as other
import torch
from torch import nn

from lowland import SAM
from lowland.sam import (
    Adaptive,
    DecoupledWeighted,
    Friendly,
    Look,
    ProportionalToLR,
    SurrogateGap,
    Weighted,
)

from .naive import mlp, regression, relative_error, seeded, squared

STEPS = 8
CLOSE = 1e-6
OPTIONS = {
    torch.optim.SGD: {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    torch.optim.AdamW: {"lr": 0.01},
}


def train(module, base, make):
    """Lowland's training: ``make`` is given the optimizer."""
    sam = make(base)
    for step in range(STEPS):
        base.zero_grad()
        sam.backward(functools.partial(squared, module), *regression(step))
        base.step()
    return list(module.parameters())


def train_other(module, optimizer, *, first=True):
    """The other library's; ``first``: whether the closure is to be called before the step."""
    for batch in (regression(step) for step in range(STEPS)):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = squared(module, *batch)
            loss.backward()
            return loss

        if first:
            closure()
        optimizer.step(closure)
    return list(module.parameters())


def far_from_sam(found, base, **options):
    """Whether a variant's training is not that of SAM, which a test of it must be able to tell."""
    module = mlp()
    plain = train(module, base(module.parameters()), lambda _: SAM(module, **options))
    return relative_error(found, plain) > 100 * CLOSE


@pytest.mark.parametrize("kind", OPTIONS)
def test_sam(kind):
    one, two = mlp(), mlp()
    found = train(one, kind(one.parameters(), **OPTIONS[kind]), lambda _: SAM(one, rho=0.3))
    expected = train_other(two, other.SAM(two.parameters(), kind, rho=0.3, **OPTIONS[kind]))
    assert relative_error(found, expected) < CLOSE
    assert far_from_sam(found, functools.partial(kind, **OPTIONS[kind]), rho=0.0)


@pytest.mark.parametrize("kind", OPTIONS)
def test_adaptive_sam(kind):
    """Theirs scales biases too, and has no eta."""
    one, two = mlp(), mlp()
    ascent = Adaptive(eta=0.0, scaled="*")
    make = functools.partial(kind, **OPTIONS[kind])
    found = train(one, make(one.parameters()), lambda _: SAM(one, rho=0.6, ascent=ascent))
    expected = train_other(two, other.SAM(two.parameters(), kind, rho=0.6, adaptive=True, **OPTIONS[kind]))
    assert relative_error(found, expected) < CLOSE
    assert far_from_sam(found, make, rho=0.6)


@pytest.mark.parametrize("kind", OPTIONS)
def test_surrogate_gap_with_a_radius_that_follows_the_learning_rate(kind):
    """Theirs asks the schedule for the radius when told to, ours before each climb."""
    one, two, batches = mlp(), mlp(), [regression(step) for step in range(STEPS)]
    lr = OPTIONS[kind]["lr"]
    bases = [kind(module.parameters(), **OPTIONS[kind]) for module in (one, two)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(base, 0.8) for base in bases]
    rho = ProportionalToLR(bases[0], 0.5, max_lr=lr, min_rho=0.1, min_lr=0.01 * lr)
    sam = SAM(one, rho=rho, combine=SurrogateGap(0.4))
    theirs = other.lr_scheduler.ProportionScheduler(
        schedules[1], max_lr=lr, min_lr=0.01 * lr, max_value=0.5, min_value=0.1
    )
    gsam = other.GSAM(two.parameters(), bases[1], two, rho_scheduler=theirs, alpha=0.4)
    for x, y in batches:
        bases[0].zero_grad()
        sam.backward(functools.partial(squared, one), x, y)
        bases[0].step()
        gsam.set_closure(lambda out, target: (out - target).square().mean(), x, y)
        gsam.step()
        for schedule in schedules:
            schedule.step()
        gsam.update_rho_t()
    found = list(one.parameters())
    assert relative_error(found, list(two.parameters())) < CLOSE
    assert far_from_sam(found, functools.partial(kind, **OPTIONS[kind]), rho=0.5)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("decouple", [False, True])
def test_weighted_sam(kind, decouple):
    one, two = mlp(), mlp()

    def make(base):
        return SAM(one, rho=0.3, combine=DecoupledWeighted(0.8, base) if decouple else Weighted(0.8))

    found = train(one, kind(one.parameters(), **OPTIONS[kind]), make)
    theirs = other.WSAM(two, two.parameters(), kind, rho=0.3, gamma=0.8, decouple=decouple, **OPTIONS[kind])
    assert relative_error(found, train_other(two, theirs, first=False)) < CLOSE
    assert far_from_sam(found, functools.partial(kind, **OPTIONS[kind]), rho=0.3)


@pytest.mark.parametrize(("sigma", "lam"), [(1.0, 0.9), (0.5, 0.6)])
def test_friendly_sam(sigma, lam):
    """SGD only: theirs keeps its average in the state of the base optimizer, as ``momentum``."""
    one, two = mlp(), mlp()
    base = functools.partial(torch.optim.SGD, lr=0.05)
    found = train(one, base(one.parameters()), lambda _: SAM(one, rho=0.3, ascent=Friendly(sigma, lam)))
    theirs = other.FriendlySAM(two.parameters(), torch.optim.SGD, rho=0.3, sigma=sigma, lmbda=lam, lr=0.05)
    assert relative_error(found, train_other(two, theirs)) < CLOSE
    assert far_from_sam(found, base, rho=0.3)


@pytest.mark.parametrize("k", [1, 3])
def test_look_sam_of_one_tensor(k):
    """Theirs projects and rescales tensor by tensor where the paper has one vector: one tensor only.

    It has 1e-8 in a denominator, and on the steps between makes a pass that it does not need.
    """
    one, two = (seeded(nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh())) for _ in range(2))
    base = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    found = train(one, base(one.parameters()), lambda _: SAM(one, rho=0.3, combine=Look(k, 0.7)))
    theirs = other.LookSAM(two.parameters(), torch.optim.SGD, rho=0.3, k=k, alpha=0.7, lr=0.05, momentum=0.9)
    assert relative_error(found, train_other(two, theirs)) < CLOSE


def test_look_sam_of_several_tensors_is_another_algorithm_there():
    """Should this fail, theirs has one norm for all tensors now, and the test above can have several."""
    one, two = mlp(), mlp()
    base = functools.partial(torch.optim.SGD, lr=0.05)
    found = train(one, base(one.parameters()), lambda _: SAM(one, rho=0.3, combine=Look(3, 0.7)))
    theirs = other.LookSAM(two.parameters(), torch.optim.SGD, rho=0.3, k=3, alpha=0.7, lr=0.05)
    assert relative_error(found, train_other(two, theirs)) > 100 * CLOSE
