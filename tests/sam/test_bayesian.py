"""Bayesian SAM against its algorithm, written out."""

import math

import pytest
import torch
from torch import nn

from lowland import SAM
from lowland.sam import BSAM, BayesianAscent, StartingAscent, stable

from .naive import identity, mlp, regression, squared, value_and_gradient

N, LR, RHO, DELTA, GAMMA = 50, 0.3, 0.05, 0.02, 0.1


class Drawn(BayesianAscent):
    """Keeps what it drew."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.draws = []

    def start(self, weights):
        self.draws.append(list(super().start(weights)))
        return self.draws[-1]


def setup(**options):
    module = mlp()
    options = {"lr": LR, "num_examples": N, "weight_decay": DELTA, "damping": GAMMA, **options}
    optimizer = BSAM(module.parameters(), **options)
    return module, optimizer, Drawn(optimizer)


@pytest.mark.parametrize("m", [3, None])
def test_training_is_algorithm_1(m):
    torch.manual_seed(0)
    module, optimizer, ascent = setup(betas=(0.8, 0.9))
    sam, batch = SAM(module, rho=RHO, m=m, ascent=ascent), regression(examples=6)
    w = [p.detach().clone() for p in module.parameters()]
    s, v = [torch.ones_like(p) for p in w], [torch.zeros_like(p) for p in w]
    size = m or 6
    for _ in range(4):
        optimizer.zero_grad()
        ascent.draws.clear()
        value = sam.backward(lambda x, y: squared(module, x, y), *batch)
        optimizer.step()
        groups = [tuple(t[i : i + size] for t in batch) for i in range(0, 6, size)]
        assert len(ascent.draws) == len(groups)
        twin = mlp()
        g, ge = [torch.zeros_like(p) for p in w], [torch.zeros_like(p) for p in w]
        values = []
        for group, noise in zip(groups, ascent.draws, strict=True):
            loss, first = value_and_gradient(
                mlp(), squared, group, [a + z for a, z in zip(w, noise, strict=True)]
            )
            at = [a + RHO * b / c for a, b, c in zip(w, first, s, strict=True)]
            _, second = value_and_gradient(twin, squared, group, at)
            values.append(loss)
            g = [a + b / len(groups) for a, b in zip(g, first, strict=True)]
            ge = [a + b / len(groups) for a, b in zip(ge, second, strict=True)]
        assert value.item() == pytest.approx(sum(values) / len(values), rel=1e-12)
        for i, (gi, gei) in enumerate(zip(g, ge, strict=True)):
            v[i] = 0.8 * v[i] + 0.2 * (gei + DELTA * w[i])
            s[i] = 0.9 * s[i] + 0.1 * (s[i].sqrt() * gi.abs() + DELTA + GAMMA)
            w[i] = w[i] - LR * v[i] / s[i]
        for p, expected, scale in zip(module.parameters(), w, s, strict=True):
            assert torch.allclose(p, expected, rtol=1e-12, atol=1e-14)
            assert torch.allclose(optimizer.scale(p), scale, rtol=1e-12)


def test_draws_have_the_posteriors_variance():
    torch.manual_seed(0)
    big, small = nn.Parameter(torch.zeros(20_000)), nn.Parameter(torch.zeros(20_000))
    optimizer = BSAM([{"params": [big], "initial_scale": 4.0}, {"params": [small]}], lr=0.1, num_examples=100)
    ascent = Drawn(optimizer)
    sam = SAM([big, small], rho=0.1, ascent=ascent)
    sam.backward(lambda x: (big.sum() + small.sum()) * x.mean(), torch.ones(2))
    for drawn, s in zip(ascent.draws[0], (4.0, 1.0), strict=True):
        assert drawn.std().item() == pytest.approx(1 / math.sqrt(100 * s), rel=0.03)
        assert drawn.mean().item() == pytest.approx(0.0, abs=0.003)


def test_weights_do_not_drift_without_a_step():
    """The noise and the perturbation of kozistr's BSAM are never removed."""
    module, _, ascent = setup()
    sam, before = SAM(module, rho=RHO, ascent=ascent), identity(module)
    for _ in range(10):
        sam.backward(lambda x, y: squared(module, x, y), *regression())
    assert identity(module) == before


def test_every_group_draws_anew_and_a_seed_repeats_it():
    def drawn():
        torch.manual_seed(3)
        module, _, ascent = setup()
        sam = SAM(module, rho=RHO, m=2, ascent=ascent)
        sam.backward(lambda x, y: squared(module, x, y), *regression(examples=4))
        return ascent.draws

    draws = [drawn(), drawn()]
    assert not torch.equal(draws[0][0][0], draws[0][1][0])
    assert torch.equal(draws[0][1][0], draws[1][1][0])


def test_resumed_training_continues_identically(tmp_path):
    module, optimizer, ascent = setup()
    twin, other, others = setup()
    for step in range(6):
        if step == 3:
            torch.save([module.state_dict(), optimizer.state_dict()], tmp_path / "state")
            weights, state = torch.load(tmp_path / "state", weights_only=True)
            twin.load_state_dict(weights)
            other.load_state_dict(state)
        for net, opt, up in [(module, optimizer, ascent)] + ([(twin, other, others)] if step >= 3 else []):
            torch.manual_seed(step)
            opt.zero_grad()
            sam = SAM(net, rho=RHO, m=3, ascent=up)
            sam.backward(lambda x, y, net=net: squared(net, x, y), *regression())
            opt.step()
    assert [a for a, _ in identity(module)] == [a for a, _ in identity(twin)]


def test_several_steps_and_numbers_out_of_range_are_refused():
    module, _, ascent = setup()
    assert isinstance(ascent, StartingAscent)
    with pytest.raises(ValueError, match=r"^steps must be 1 with Drawn, which starts elsewhere, got 2\.$"):
        SAM(module, rho=RHO, ascent=ascent, steps=2).backward(
            lambda x, y: squared(module, x, y), *regression()
        )
    with pytest.raises(ValueError, match=r"^combine must be None with Drawn, which starts elsewhere, got"):
        SAM(module, rho=RHO, ascent=ascent, combine=stable).backward(
            lambda x, y: squared(module, x, y), *regression()
        )
    for options, message in [
        ({"lr": 0.0}, r"^lr must be positive, got 0\.0\.$"),
        ({"damping": -1.0}, r"^damping must be non-negative, got -1\.0\.$"),
        ({"betas": (1.0, 0.9)}, r"^betas must be at least 0 and below 1, got \(1\.0, 0\.9\)\.$"),
    ]:
        with pytest.raises(ValueError, match=message):
            setup(**options)
