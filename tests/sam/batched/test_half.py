"""Weights of half precision, all groups at once: nothing that is added to them, or to products, is lost."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowland import SAM
from lowland.sam import Adaptive, weights_are_perturbed

from ..naive import relative_error, seeded
from .models import Through, parameter
from .test_types import LAYERS

HALVES = [torch.bfloat16, torch.float16]
B = 8


def network(seed=0):
    layers = [nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 5)]
    return seeded(nn.Sequential(*layers), seed)


def gradient(module, batch, *, rho, m=None, engine="batched", loss=None, **options):
    """The SAM gradient, in float64."""

    def cross_entropy(x, y):
        outputs = module(x)
        return F.cross_entropy(outputs if outputs.dtype == torch.float64 else outputs.float(), y)

    module.zero_grad()
    SAM(module, rho=rho, m=m, engine=engine, **options).backward(loss or cross_entropy, *batch)
    return [p.grad.double() for p in module.parameters()]


def in_double(module, batch):
    """The same numbers in float64."""
    return copy.deepcopy(module).double(), tuple(t.double() if t.is_floating_point() else t for t in batch)


def share_that_arrives(dtype, rho, m, seeds=8):
    """How much of the change that the climb makes to the gradient is there, along that change."""
    inner = total = 0.0
    for seed in range(seeds):
        module = network(seed).to(dtype)
        torch.manual_seed(seed)
        batch = torch.randn(32, 16).to(dtype), torch.randint(5, (32,))
        exact, given = in_double(module, batch)
        there, here = (gradient(exact, given, rho=r, m=m, engine="loop") for r in (rho, 0.0))
        found, start = (gradient(module, batch, rho=r, m=m) for r in (rho, 0.0))
        for a, b, c, d in zip(there, here, found, start, strict=True):
            inner += float(((a - b) * (c - d)).sum())
            total += float((a - b).square().sum())
    return inner / total


@pytest.mark.parametrize("m", [None, 4, 1])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_small_climb_arrives_as_it_is(dtype, m) -> None:
    assert share_that_arrives(dtype, 0.01, m) == pytest.approx(1.0, abs=0.08)


def test_rounded_to_the_nearest_it_would_not_arrive(monkeypatch) -> None:
    from lowland.sam.batched.weights import Weight

    monkeypatch.setattr(Weight, "rounded", lambda _, t, dtype, **__: t.to(dtype))
    assert share_that_arrives(torch.bfloat16, 0.002, None) < 0.8


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"bilinear", "prelu"}))
def test_every_layer_has_the_gradient_of_its_numbers(name, dtype) -> None:
    """To the digits of the type; ``prelu`` and ``bilinear`` in half precision are not in ``vmap``."""
    make, shape = LAYERS[name]
    module = seeded(make()).to(dtype)
    torch.manual_seed(0)
    x = torch.randint(4, (B, *shape)) if "embedding" in name else torch.randn(B, *shape).to(dtype)

    def loss_of(module):
        return lambda x: module(x).to(torch.float64).sin().mean()

    if name == "embedding_bag":
        x = torch.randn(B, *shape).to(dtype)
    exact, given = in_double(module, (x,))
    options = {"rho": 0.05, "m": 2, "bn_stats": "frozen"}
    expected = gradient(exact, given, engine="loop", loss=loss_of(exact), **options)
    found = gradient(module, (x,), loss=loss_of(module), **options)
    assert relative_error(found, expected) < (0.04 if dtype == torch.bfloat16 else 0.006)


@pytest.mark.parametrize(
    "options",
    [{"steps": 3, "step_size": 0.5}, {"l2": 0.1}, {"ascent": Adaptive()}, {"diagnostics": True}],
    ids=["steps", "l2", "adaptive", "diagnostics"],
)
def test_options_have_the_gradient_of_the_numbers(options) -> None:
    module = network().bfloat16()
    batch = torch.randn(B, 16).bfloat16(), torch.randint(5, (B,))
    exact, given = in_double(module, batch)
    expected = gradient(exact, given, engine="loop", rho=0.1, m=2, **options)
    assert relative_error(gradient(module, batch, rho=0.1, m=2, **options), expected) < 0.04


def test_rows_of_a_weight_are_perturbed_as_it_is() -> None:
    """A fused projection, whose perturbation is known as a whole, used in slices, as a branch may do."""

    def forward(s, x):
        if s.w.requires_grad and not weights_are_perturbed():
            return F.linear(x, s.w)
        q, k = (F.linear(x, w) for w in s.w.chunk(2))
        return torch.cat([q, k], -1)

    module = Through(forward, w=parameter(8, 4)).bfloat16()
    batch = (torch.randn(B, 4).bfloat16(),)
    exact, given = in_double(module, batch)

    def loss_of(module):
        return lambda x: module(x).double().sin().mean()

    expected = gradient(exact, given, rho=2.0, m=2, engine="loop", loss=loss_of(exact))
    found = gradient(module, batch, rho=2.0, m=2, loss=loss_of(module))
    assert relative_error(found, expected) < 0.04
    assert relative_error(gradient(module, batch, rho=0.0, loss=loss_of(module)), expected) > 0.4


def test_what_a_checkpoint_runs_again_is_rounded_alike() -> None:
    module = network().bfloat16()
    batch = torch.randn(B, 16).bfloat16(), torch.randint(5, (B,))
    found = []
    for run in (lambda x: module(x), lambda x: checkpoint(module, x, use_reentrant=False)):

        def loss(x, y, run=run):
            return F.cross_entropy(run(x).float(), y)

        torch.manual_seed(1)
        found.append(gradient(module, batch, rho=0.05, m=2, loss=loss))
    assert relative_error(*found) == 0.0


def test_a_weight_with_two_kinds_of_use_is_rounded_alike_when_it_runs_again() -> None:
    both = Through(lambda s, x: torch.tanh(F.linear(x, s.w)) * s.w.sum(), w=parameter(4, 4))
    module = seeded(both).bfloat16()
    x, found = torch.randn(B, 4).bfloat16(), []
    for run in (lambda x: module(x), lambda x: checkpoint(module, x, use_reentrant=False)):
        torch.manual_seed(1)
        found.append(
            gradient(module, (x,), rho=0.5, m=2, loss=lambda x, run=run: run(x).float().sin().mean())
        )
    assert relative_error(*found) == 0.0


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0])
def test_gradients_of_a_norm_are_as_exact_where_rows_have_a_mean(offset) -> None:
    """Sums over rows of what is normalized cancel there."""
    module = seeded(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 3))).bfloat16()
    batch = ((torch.randn(64, 64) + offset).bfloat16(),)
    exact, given = in_double(module, batch)

    def loss_of(module):
        return lambda x: module(x).double().sin().mean()

    options = {"rho": 0.05, "m": 16}
    expected = gradient(exact, given, engine="loop", loss=loss_of(exact), **options)
    assert relative_error(gradient(module, batch, loss=loss_of(module), **options), expected) < 0.02


def test_weights_are_never_touched_and_gradients_have_their_type() -> None:
    module = network().bfloat16()
    before = [p.detach().clone() for p in module.parameters()]
    versions = [p._version for p in module.parameters()]
    gradient(module, (torch.randn(B, 16).bfloat16(), torch.randint(5, (B,))), rho=0.1, m=1)
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    assert [p._version for p in module.parameters()] == versions
    assert all(p.grad.dtype == torch.bfloat16 for p in module.parameters())


def test_the_realised_perturbation_is_the_one_that_was_asked_for() -> None:
    module = network().bfloat16()
    sam = SAM(module, rho=0.01, m=2, engine="batched", diagnostics=True)
    x, y = torch.randn(B, 16).bfloat16(), torch.randint(5, (B,))
    sam.backward(lambda x, y: F.cross_entropy(module(x).float(), y), x, y)
    assert sam.last_diagnostics.realised_norm.tolist() == pytest.approx([0.01] * 4, rel=1e-5)
