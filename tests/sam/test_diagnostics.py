"""What each group's climb did, against the naive loop and against weights that were watched."""

import functools
import math

import pytest
import torch
from torch import nn

from lowland import L2, SAM, ClippedUnnormalized, Unnormalized, sam_gradient
from lowland.sam import AlongMomentum, MicroBatches, Random, RandomSubset, SurrogateGap, Weighted

from .naive import (
    added,
    bits,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    rows,
    squared,
    squared_per_example,
    tensors,
    value_and_gradient,
)

ASCENTS = {"l2": L2, "unnormalized": Unnormalized, "clipped": ClippedUnnormalized}
FIELDS = [
    "group_size",
    "loss",
    "perturbed_loss",
    "gradient_norm",
    "perturbation_norm",
    "realised_norm",
    "moved",
    "cosine",
    "climbed",
]


def measured(module, loss, batch, **options):
    params = list(module.parameters())
    return sam_gradient(
        functools.partial(loss, module), params, batch, diagnostics=True, **options
    ).diagnostics


def cosine(a, b):
    dot = sum((s * t).sum().item() for s, t in zip(a, b, strict=True))
    return dot / (norm(a) * norm(b))


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("m", [3, None])
@pytest.mark.parametrize("options", [{}, {"steps": 3, "step_size": 0.6}, {"l2": 0.3}])
@pytest.mark.parametrize("another", [False, True])
def test_every_group_is_as_in_the_naive_loop(ascent, m, options, another):
    module, batch, other = mlp(), regression(1), regression(2)
    source = other if another else None
    found = measured(
        module, squared, batch, rho=0.4, m=m, ascent=ASCENTS[ascent](), ascent_batch=source, **options
    )
    step, expected = m or 7, []
    for i in range(0, 7, step):
        group, climbed = rows(batch, i, i + step), rows(other, i, i + step) if another else None
        expected.append(
            naive_sam(module, squared, group, rho=0.4, ascent=ascent, ascent_batch=climbed, **options)
        )
    for field, values in {
        "group_size": [n.sizes[0] for n in expected],
        "loss": [n.losses[0] for n in expected],
        "perturbed_loss": [n.perturbed_losses[0] for n in expected],
        "gradient_norm": [n.gradient_norms[0] for n in expected],
        "perturbation_norm": [norm(n.perturbations[0]) for n in expected],
        "realised_norm": [norm(n.perturbations[0]) for n in expected],
        "moved": [1.0] * len(expected),
        "cosine": [cosine(n.at_weights, n.gradients) for n in expected],
    }.items():
        assert getattr(found, field).tolist() == pytest.approx(values, rel=1e-10), field
    assert found.climbed.tolist() == [True] * len(expected)
    assert found.skipped == 0
    rises = [n.sizes[0] / 7 * (n.perturbed_losses[0] - n.losses[0]) for n in expected]
    assert found.sharpness.item() == pytest.approx(sum(rises), rel=1e-10)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"m": 2}, {"l2": 0.1}, {"combine": SurrogateGap(0.3)}, {"another": 1}]
)
def test_measuring_costs_no_pass_and_changes_no_bit_of_the_gradient(steps, options):
    options, batch, found = dict(options), regression(), []
    if options.pop("another", None):
        options["ascent_batch"] = regression(3)
    for measure in (False, True):
        module, calls = mlp(), []

        def loss(x, y, module=module, calls=calls):
            calls.append(len(x))
            return squared(module, x, y)

        result = sam_gradient(
            loss, list(module.parameters()), batch, rho=0.4, steps=steps, diagnostics=measure, **options
        )
        found.append((calls, [bits(g) for g in result.gradients], result.diagnostics is None))
    assert found[0][:2] == found[1][:2]
    assert [absent for _, _, absent in found] == [True, False]


def test_measuring_draws_nothing():
    states = []
    for measure in (False, True):
        torch.manual_seed(0)
        module = mlp()
        SAM(module, rho=0.4, m=2, ascent=RandomSubset(0.5), diagnostics=measure).backward(
            functools.partial(squared, module), *regression()
        )
        states.append((torch.get_rng_state(), [bits(p.grad) for p in module.parameters()]))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


@pytest.mark.parametrize(("measure", "passes"), [(False, 1), (True, 2)])
def test_blind_ascent_is_measured_with_a_second_pass(measure, passes):
    """The first one is what there is to compare with."""
    module, batch, calls = mlp(), regression(), []

    def loss(x, y):
        calls.append(None)
        return squared(module, x, y)

    sam = SAM(module, rho=0.4, ascent=Random(), diagnostics=measure)
    value = sam.backward(loss, *batch)
    assert len(calls) == passes
    if measure:
        plain = squared(module, *batch)
        assert value.item() == pytest.approx(plain.item(), rel=1e-13)
        assert sam.last_diagnostics.loss.item() == pytest.approx(plain.item(), rel=1e-13)
        assert sam.last_diagnostics.gradient_norm.isnan().all()
        assert sam.last_diagnostics.realised_norm.item() == pytest.approx(
            sam.last_diagnostics.perturbation_norm.item(), rel=1e-12
        )
        assert sam.last_diagnostics.climbed.tolist() == [True]
        g = torch.autograd.grad(plain, list(module.parameters()))
        expected = cosine(g, [p.grad for p in module.parameters()])
        assert sam.last_diagnostics.cosine.item() == pytest.approx(expected, rel=1e-12)


def test_blind_ascent_that_leads_nowhere_is_skipped():
    module, batch = mlp(), regression()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    sam = SAM(module, rho=0.4, m=3, ascent=AlongMomentum(optimizer), diagnostics=True)
    sam.backward(functools.partial(squared, module), *batch)
    found = sam.last_diagnostics
    assert found.skipped == 3
    assert torch.equal(found.perturbed_loss, found.loss)
    assert found.perturbation_norm.tolist() == [0.0] * 3
    assert found.cosine.tolist() == pytest.approx([1.0] * 3, rel=1e-12)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_climb_against_the_momentum_is_measured_and_combined(engine):
    """Lengths are those of -0.4 v / |v|, a vector times a negative number."""
    module, batch = mlp(), regression()
    w = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    v = tensors(3, *(t.shape for t in w))
    for p, t in zip(module.parameters(), v, strict=True):
        optimizer.state[p]["momentum_buffer"] = t
    at = added(w, v, -0.4 / norm(v))
    options = {"ascent": AlongMomentum(optimizer), "combine": Weighted(0.8), "diagnostics": True}
    sam = SAM(module, rho=0.4, m=3, engine=engine, **options)
    sam.backward(functools.partial(squared, module), *batch)
    found = sam.last_diagnostics
    assert found.perturbation_norm.tolist() == pytest.approx([0.4] * 3, rel=1e-12)
    assert found.climbed.tolist() == [True] * 3
    expected = [value_and_gradient(module, squared, rows(batch, i, i + 3), at)[0] for i in (0, 3, 6)]
    assert found.perturbed_loss.tolist() == pytest.approx(expected, rel=1e-12)
    g, g_e = (value_and_gradient(module, squared, batch, weights)[1] for weights in (w, at))
    combined = [a + 4.0 * (b - a) for a, b in zip(g, g_e, strict=True)]
    assert relative_error([p.grad for p in module.parameters()], combined) < 1e-12


@pytest.mark.parametrize("ascent", ASCENTS)
def test_radius_zero_climbs_nowhere_and_still_measures_the_gradient(ascent):
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=0.4, m=3)
    found = measured(module, squared, batch, rho=0.0, m=3, ascent=ASCENTS[ascent](), scale=8.0)
    assert found.gradient_norm.tolist() == pytest.approx(expected.gradient_norms, rel=1e-12)
    assert found.cosine.tolist() == pytest.approx([1.0] * 3, rel=1e-12)
    assert torch.equal(found.perturbed_loss, found.loss)
    for zero in (found.perturbation_norm, found.realised_norm, found.moved):
        assert zero.tolist() == [0.0] * 3
    assert found.climbed.tolist() == [False] * 3
    assert found.skipped == 3
    assert found.sharpness == 0.0


def of_factor(a, b):
    """A loss whose gradient is the example's factor times that of a quadratic."""
    return lambda x: (a.square().sum() + b.square().sum()) * x.mean()


def two():
    return [nn.Parameter(t) for t in tensors(0, (3,), (2, 2))]


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("steps", [1, 2])
def test_groups_with_a_zero_or_a_non_finite_gradient_are_skipped(ascent, steps):
    a, b = two()
    factors = torch.tensor([1.0, 0.0, math.inf, math.nan, 2.0], dtype=torch.float64)
    result = sam_gradient(
        of_factor(a, b),
        [a, b],
        (factors,),
        rho=0.1,
        m=1,
        ascent=ASCENTS[ascent](),
        steps=steps,
        diagnostics=True,
    )
    found, length = result.diagnostics, 2 * norm([a.detach(), b.detach()])
    assert found.climbed.tolist() == [True, False, False, False, True]
    assert found.skipped == 3
    assert found.gradient_norm[[0, 1, 4]].tolist() == pytest.approx([length, 0.0, 2 * length], rel=1e-12)
    assert not found.gradient_norm[2:4].isfinite().any()
    assert found.cosine.isnan().tolist() == [False, True, True, True, False]
    assert found.cosine[[0, 4]].tolist() == pytest.approx([1.0, 1.0])
    for zero in (found.perturbation_norm, found.realised_norm, found.moved):
        assert zero[1:4].tolist() == [0.0] * 3
    assert found.perturbed_loss[1] == found.loss[1] == 0.0
    assert not any(g.isfinite().all() for g in result.gradients), "the caller sees it and skips the step"


def test_gradient_that_is_not_finite_at_the_perturbed_weights_has_no_cosine():
    a, b = two()
    calls = []

    def loss(x):
        calls.append(None)
        return (a.square().sum() + b.square().sum()) * (x.mean() if len(calls) == 1 else math.inf)

    found = sam_gradient(loss, [a, b], (torch.ones(2),), rho=0.1, diagnostics=True).diagnostics
    assert found.climbed.tolist() == [True]
    assert found.cosine.isnan().all()
    assert found.perturbed_loss.item() == math.inf
    assert found.perturbation_norm.item() == pytest.approx(0.1)


def test_gradient_that_is_not_finite_in_the_second_step_ends_the_climb():
    a, b = two()
    calls = []

    def loss(x):
        calls.append(None)
        return (a.square().sum() + b.square().sum()) * (x.mean() if len(calls) == 1 else math.nan)

    result = sam_gradient(loss, [a, b], (torch.ones(2),), rho=0.1, steps=3, diagnostics=True)
    assert len(calls) == 2
    assert result.diagnostics.climbed.tolist() == [False]
    assert result.diagnostics.gradient_norm.item() == pytest.approx(2 * norm([a.detach(), b.detach()]))
    assert not any(g.isfinite().any() for g in result.gradients)


def test_cosine_of_opposite_and_orthogonal_gradients():
    a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([0.0]))
    slopes = iter([(1.0, 0.0), (-3.0, 0.0), (1.0, 0.0), (0.0, 2.0)])

    def loss(x):
        p, q = next(slopes)
        return (p * a + q * b).sum() * x.mean()

    found = sam_gradient(loss, [a, b], (torch.ones(2),), rho=0.1, m=1, diagnostics=True).diagnostics
    assert found.cosine.tolist() == pytest.approx([-1.0, 0.0], abs=1e-6)


def test_cosine_is_over_all_parameters_those_without_a_radius_too():
    module, batch = mlp(), regression()
    sam = SAM(module, rho=0.4, perturb="2.*", diagnostics=True)
    sam.backward(functools.partial(squared, module), *batch)
    g = torch.autograd.grad(squared(module, *batch), list(module.parameters()))
    expected = cosine(g, [p.grad for p in module.parameters()])
    assert sam.last_diagnostics.cosine.item() == pytest.approx(expected, rel=1e-12)
    assert sam.last_diagnostics.gradient_norm.item() == pytest.approx(norm(g[2:]), rel=1e-12)
    assert sam.last_diagnostics.moved.item() == 1.0


@pytest.mark.parametrize("steps", [1, 2])
def test_share_that_moved_is_of_the_weights_with_a_radius(steps):
    """Two of seven: of the used weights one has a zero gradient, and three weights are not used."""
    used, idle, still = nn.Parameter(torch.tensor([1.0, 2.0, 0.0, 0.0])), nn.Parameter(torch.ones(3)), None
    still = nn.Parameter(torch.ones(5))
    groups = [{"params": [used, idle]}, {"params": [still], "rho": 0.0}]
    sam = SAM(groups, rho=0.1, steps=steps, diagnostics=True)
    sam.backward(lambda x: (used.square().sum() + still.sum()) * x.mean(), torch.ones(2))
    assert sam.last_diagnostics.moved.item() == pytest.approx(2 / 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_realised_perturbation_is_what_the_pass_saw(dtype):
    w = tensors(0, (700,), (30, 10), dtype=torch.float32)
    params, slopes, seen = [nn.Parameter(t.to(dtype)) for t in w], tensors(1, (700,), (30, 10)), []

    def loss(x):
        seen.append([p.detach().double() for p in params])
        return sum((p.double() * s).sum() for p, s in zip(params, slopes, strict=True)) * x.mean()

    found = sam_gradient(loss, params, (torch.ones(2).double(),), rho=0.02, m=1, diagnostics=True).diagnostics
    for i in range(2):
        moves = [b - a for a, b in zip(*seen[2 * i : 2 * i + 2], strict=True)]
        assert found.realised_norm[i].item() == pytest.approx(norm(moves), rel=1e-6)
        share = sum(m.count_nonzero().item() for m in moves) / 1000
        assert found.moved[i].item() == pytest.approx(share, rel=1e-6)
    assert found.perturbation_norm.tolist() == pytest.approx([0.02, 0.02], rel=1e-4)
    if dtype == torch.bfloat16:
        assert (found.realised_norm > 0.03).all(), "rounded up or down, a step is longer than meant"
        assert (found.moved < 0.5).all()
        assert found.realised_norm[0] != found.realised_norm[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_columns_are_float32_or_better(dtype):
    params = [nn.Parameter(torch.ones(3, dtype=dtype)), nn.Parameter(torch.ones(2, dtype=dtype))]
    found = sam_gradient(
        lambda x: sum(p.sum() for p in params) * x.mean().to(dtype),
        params,
        (torch.ones(2),),
        rho=0.1,
        m=1,
        diagnostics=True,
    ).diagnostics
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for field in FIELDS[:-1]:
        assert getattr(found, field).dtype == wanted, field
        assert getattr(found, field).shape == (2,), field
        assert not getattr(found, field).requires_grad, field
    assert found.climbed.dtype == torch.bool


def test_weights_of_groups_take_the_place_of_their_sizes():
    module, batch = mlp(), regression()
    found = measured(module, squared, batch, rho=0.4, m=3, weight=lambda x, _: 0.5 * len(x) ** 2)
    expected = naive_sam(module, squared, batch, rho=0.4, m=3)
    assert found.group_size.tolist() == [4.5, 4.5, 0.5]
    rises = [b - a for a, b in zip(expected.losses, expected.perturbed_losses, strict=True)]
    assert found.sharpness.item() == pytest.approx((9 * rises[0] + 9 * rises[1] + rises[2]) / 19, rel=1e-12)


def test_parts_of_a_group_are_measured_together():
    module, batch = mlp(), regression()
    parts = MicroBatches([rows(batch, 0, 4), rows(batch, 4, 7)])
    found = measured(module, squared_per_example, parts, rho=0.4, m=5)
    expected = measured(module, squared_per_example, batch, rho=0.4, m=5)
    for field in FIELDS:
        a, b = (getattr(d, field).double() for d in (found, expected))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=lambda m, f=field: f"{f}: {m}")


def test_scale_is_in_no_column():
    module, batch = mlp(), regression()
    once = measured(module, squared, batch, rho=0.4, m=3, l2=0.1, ascent=Unnormalized())
    scaled = measured(module, squared, batch, rho=0.4, m=3, l2=0.1, ascent=Unnormalized(), scale=2.0**16)
    errors = {f: relative_error([getattr(scaled, f).double()], [getattr(once, f).double()]) for f in FIELDS}
    assert max(errors.values()) < 1e-13, errors
