"""Gradients of any size: the loss's scale changes no normalized perturbation, in both engines."""

import contextlib
import math

import pytest
import torch
from torch import nn

from lowland import sam_gradient
from lowland.sam import (
    Adaptive,
    AlongMomentum,
    ClippedUnnormalized,
    Friendly,
    Look,
    RandomSubset,
    Unified,
    Unnormalized,
    magnitude_only,
    stable,
)
from lowland.sam.ascent import AscentStep
from lowland.sam.combine.weighted import orthogonal_part
from lowland.sam.vectors.factors import Factor, OneHot
from lowland.sam.vectors.norms import cosines, squared_norms
from lowland.sam.vectors.per_group import LowRank, PerGroup

from .batched.models import MODELS, B, trained
from .naive import relative_error, seeded, tensors

ENGINES = ["loop", "batched"]
SCALES = [1e-30, 1e-24, 1e-12, 1e12, 1e30]
RHO = 0.2


def cast(element, dtype):
    """The batch with its numbers in another type."""
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in element)


def result(name, dtype, scale, *, autocast=None, **options):
    """What ``sam_gradient`` finds for a loss times ``scale``, and its gradients divided by that."""
    module, loss, batch = MODELS[name]()
    module.to(dtype)
    context = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
    torch.manual_seed(0)
    options = {"rho": RHO} | options
    with context:
        found = sam_gradient(
            lambda *group: loss(*group) * scale, trained(module), cast(batch, dtype), module=module, **options
        )
    return found, [None if g is None else g.double() / scale for g in found.gradients]


def assert_close(found, expected, tolerance):
    pairs = [(g, h) for g, h in zip(found, expected, strict=True) if h is not None]
    assert relative_error([g for g, _ in pairs], [h.double() for _, h in pairs]) <= tolerance


SORTS = [
    "mlp",
    "linear_of_sequences",
    "linear_of_long_sequences",
    "huggingface_conv1d",
    "low_rank_adapter",
    "parts_of_a_matrix",
    "conv2d_of_wide_maps",
    "conv2d_of_narrow_maps",
    "shared_convolution",
    "conv2d_depthwise",
    "layer_norm",
    "group_norm",
    "batch_norm",
    "prelu",
    "embedding_with_padding",
    "embedding_of_long_sequences",
    "embedding_tied_to_the_output",
    "self_attention",
]
"""Models whose gradients are held in every way: formed, factors of vectors, patches, ones and views."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SORTS)
def test_scale_of_the_loss_scales_the_gradient_at_the_perturbed_weights(name, engine):
    for m in (1, 2, B):
        _, expected = result(name, torch.float64, 1.0, engine="loop", m=m)
        for scale in SCALES if m == 1 else (1e-30, 1e30):
            _, found = result(name, torch.float32, scale, engine=engine, m=m)
            assert_close(found, expected, 3e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float64_has_its_own_precision_at_every_scale(scale, engine):
    for name in ("mlp", "conv2d_of_narrow_maps", "embedding_of_long_sequences"):
        _, expected = result(name, torch.float64, 1.0, engine="loop", m=2)
        assert_close(result(name, torch.float64, scale, engine=engine, m=2)[1], expected, 1e-12)


NORMALIZED = {
    "l2": {},
    "several steps": {"steps": 3, "step_size": 0.6},
    "adaptive": {"ascent": Adaptive(scaled="*")},
    "adaptive by filter": {"ascent": Adaptive(by="filter", scaled="*"), "steps": 2},
    "unified": {"ascent": Unified(lam=1.0)},
    "a random subset": {"ascent": RandomSubset(0.5)},
    "own radii": {"rho": [RHO / 2, RHO, RHO, RHO]},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", NORMALIZED.values(), ids=NORMALIZED.keys())
@pytest.mark.parametrize("name", ["mlp", "conv2d_of_narrow_maps"])
def test_every_normalized_ascent_is_free_of_the_scale(name, options, engine):
    for m in (1, B):
        _, expected = result(name, torch.float32, 1.0, engine=engine, m=m, **options)
        for power in (-100, -60, 100):
            _, found = result(name, torch.float32, 2.0**power, engine=engine, m=m, **options)
            assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", SCALES)
def test_unnormalized_ascent_at_the_inverse_radius_is_free_of_the_scale(scale, engine):
    for name in ("mlp", "conv2d_of_narrow_maps", "embedding_of_long_sequences"):
        for m in (1, 2, B):
            plain = {"engine": engine, "m": m, "ascent": Unnormalized()}
            _, expected = result(name, torch.float64, 1.0, rho=RHO, **plain)
            _, found = result(name, torch.float32, scale, rho=RHO / scale, **plain)
            assert_close(found, expected, 3e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1e12, 1e30])
def test_clipped_ascent_along_a_large_gradient_is_the_normalized_one(scale, engine):
    for name in ("mlp", "conv2d_of_narrow_maps"):
        for m in (1, 2, B):
            _, expected = result(name, torch.float64, 1.0, engine="loop", m=m)
            _, found = result(name, torch.float32, scale, engine=engine, m=m, ascent=ClippedUnnormalized())
            assert_close(found, expected, 3e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "linear_of_long_sequences", "conv2d_of_narrow_maps"])
def test_autocast_is_free_of_the_scale(name, engine):
    for m in (1, 2, B):
        _, expected = result(name, torch.float32, 1.0, autocast=torch.bfloat16, engine=engine, m=m)
        for power in (-100, 100):
            _, found = result(name, torch.float32, 2.0**power, autocast=torch.bfloat16, engine=engine, m=m)
            assert_close(found, expected, 2e-2)


def test_bfloat16_weights_are_free_of_the_scale():
    for m in (1, 2, B):
        _, expected = result("mlp", torch.bfloat16, 1.0, m=m, engine="loop", rho=1.0)
        for power in (-100, 100):
            _, found = result("mlp", torch.bfloat16, 2.0**power, m=m, engine="loop", rho=1.0)
            assert_close(found, expected, 2e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_friendly_ascent_that_remembers_is_free_of_the_scale(engine):
    found = []
    for scale in (1.0, 2.0**-100, 2.0**100):
        ascent = Friendly(sigma=0.5)
        first, _ = result("mlp", torch.float32, scale, engine=engine, m=2, ascent=ascent)
        ascent.remember([2.0 * g for g in first.climb_gradients])
        found.append(result("mlp", torch.float32, scale, engine=engine, m=2, ascent=ascent)[1])
    assert_close(found[1], found[0], 1e-5)
    assert_close(found[2], found[0], 1e-5)


WEIGHTS = [1e-28, 1e20, 1.0, 1e-12, 1e30, 0.0, 1e-5]
"""Factors on the losses of the examples of one batch."""


def weighted(engine, weights, dtype=torch.float32):
    """Diagnostics with one example a group, whose losses are multiplied by weights."""
    w, v, x, y = tensors(0, (6, 4), (3, 6), (B, 4), (B, 3), dtype=torch.float64)
    params = [nn.Parameter(w.to(dtype)), nn.Parameter(v.to(dtype))]

    def loss(x, y, weight):
        return weight * (((x @ params[0].T).tanh() @ params[1].T - y).square().sum(1))

    batch = (x.to(dtype), y.to(dtype), torch.tensor(weights, dtype=dtype))
    options = {"rho": 0.3, "m": 1, "engine": engine, "diagnostics": True}
    return sam_gradient(loss, params, batch, **options).diagnostics


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_of_all_sizes_in_one_batch_climb_alike(engine):
    plain, found = weighted("loop", [1.0] * B, torch.float64), weighted(engine, WEIGHTS)
    some = [i for i, weight in enumerate(WEIGHTS) if weight > 0.0]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[some]
    assert found.climbed.tolist() == [weight > 0.0 for weight in WEIGHTS]
    for name, size in {"gradient_norm": weights, "perturbed_loss": weights, "cosine": 1.0}.items():
        expected = getattr(plain, name)[some]
        torch.testing.assert_close(getattr(found, name)[some].double() / size, expected, rtol=1e-4, atol=0.0)
    for name in ("perturbation_norm", "realised_norm"):
        torch.testing.assert_close(getattr(found, name)[some], torch.full((6,), 0.3), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weight", [math.inf, math.nan])
def test_group_that_is_not_finite_beside_a_tiny_one_is_seen(weight, engine):
    found = weighted(engine, [1e-28, weight, 0.0, 1.0, 1e30, 1e-12, 1.0])
    assert found.climbed.tolist() == [True, False, False, True, True, True, True]
    assert not found.gradient_norm[1].isfinite()


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_that_no_radius_can_be_divided_by_climbs_nowhere(engine):
    """At 1e-40, rho over the norm is beyond float32; at 1e38 the norm itself is, of entries that are not."""
    a, b = nn.Parameter(torch.ones(100)), nn.Parameter(torch.ones(2))
    for size, finite in ((1e-40, True), (1e38, False)):
        found = sam_gradient(
            lambda x, s=size: (x * s).mean() * a.sum() + 0.0 * b.sum(),
            [a, b],
            (torch.ones(2),),
            rho=1.0,
            m=1,
            engine=engine,
            diagnostics=True,
        ).diagnostics
        assert found.climbed.tolist() == [False, False]
        assert found.gradient_norm.isfinite().tolist() == [finite, finite]


def numbers(seed, *shapes, spread):
    """float32 numbers around powers of ten of that spread, one power for each row of each group."""
    found = []
    for k, shape in enumerate(shapes):
        generator = torch.Generator().manual_seed(100 * seed + k)
        powers = (2.0 * torch.rand(*shape[:-1], 1, generator=generator) - 1.0) * spread
        found.append((torch.randn(shape, generator=generator) * 10.0**powers).clamp(-1e37, 1e37))
    return found


def held(kind, seed, spread):
    """Tensors of four groups, and the same written out in float64."""
    w = nn.Parameter(torch.ones(5, 4))
    left, right, dense = numbers(seed, (4, 3, 5), (4, 3, 4), (4, 5, 4), spread=spread)
    if kind == "dense":
        return PerGroup(w, dense=dense), dense.double()
    if kind == "one hot":
        hot = OneHot(torch.randint(0, 5, (4, 3), generator=torch.Generator().manual_seed(seed)), 5)
        formed = torch.einsum("grq,grp->gqp", hot.dense(right).double(), right.double())
        return PerGroup(w, parts=[LowRank(Factor(hot, right), 0, 5)]), formed
    parts = [LowRank(Factor(left, right), 0, 5)]
    formed = torch.einsum("grq,grp->gqp", left.double(), right.double())
    if kind == "two parts":
        other, again = numbers(seed + 50, (4, 2, 5), (4, 2, 4), spread=spread)
        parts.append(LowRank(Factor(other, again), 0, 5))
        formed = formed + torch.einsum("grq,grp->gqp", other.double(), again.double())
    return PerGroup(w, parts=parts), formed


@pytest.mark.parametrize("kind", ["dense", "one hot", "parts", "two parts"])
@pytest.mark.parametrize("spread", [0, 8, 15, 30])
def test_norms_and_cosines_are_right_for_rows_of_all_sizes(kind, spread):
    for seed in range(12):
        a, formed = held(kind, seed, spread)
        b, other = held("dense", seed + 1000, spread)
        squares = formed.flatten(1).square().sum(1)
        products, lengths = (formed * other).flatten(1).sum(1), other.flatten(1).norm(dim=1) * squares.sqrt()
        torch.testing.assert_close(squared_norms([a], 4), squares, rtol=1e-4, atol=0.0)
        torch.testing.assert_close(cosines([a], [b], 4), products / lengths, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hot", [False, True])
def test_balanced_factor_is_the_scaled_matrix(hot):
    left, right = tensors(0, (3, 2, 5), (3, 2, 4))
    left[0] *= 1e-300
    right[1] = 0.0
    factor = Factor(OneHot(torch.tensor([[0, 1], [2, 2], [1, 4]]), 5) if hot else left, right)
    by = torch.tensor([1e290, 3.0, 0.0], dtype=torch.float64)
    found = factor.balanced(by)
    torch.testing.assert_close(found.formed(), by[:, None, None] * factor.formed(), rtol=1e-12, atol=0.0)
    if not hot:
        peaks = [side[0].abs().max().item() for side in (found.left, found.right)]
        assert peaks[0] == pytest.approx(peaks[1], rel=1e-12)


@pytest.mark.parametrize("rule", [magnitude_only, stable])
def test_one_gradient_at_the_length_of_the_other_has_it_at_any_size(rule):
    g, p = tensors(0, (4, 3), (5,)), tensors(1, (4, 3), (5,))
    expected = rule(g, p)
    for of_g, of_p in ((1e-30, 1e30), (1e30, 1e-30), (1e-30, 1e-30)):
        found = rule([(of_g * t).float() for t in g], [(of_p * t).float() for t in p])
        size = of_p if rule is magnitude_only else of_g
        assert relative_error([t.double() / size for t in found], expected) <= 1e-5


def test_orthogonal_part_and_the_kept_direction_are_free_of_the_scale():
    g, p = tensors(0, (4, 3), (5,)), tensors(1, (4, 3), (5,))
    expected, look = orthogonal_part(p, g), Look(k=2)
    look(g, p)
    for of_g, of_p in ((1e-30, 1e-30), (1e-30, 1e30), (1e30, 1e-30), (1e30, 1e30)):
        small, large = [(of_g * t).float() for t in g], [(of_p * t).float() for t in p]
        found = orthogonal_part(large, small)
        assert relative_error([t.double() / of_p for t in found], expected) <= 1e-5
        other = Look(k=2)
        other(small, large)
        reused = other.reuse(small)
        assert relative_error([t.double() / of_g for t in reused], look.reuse(g)) <= 1e-5


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
def test_momentum_of_any_size_is_normalized_or_left(size):
    w = [nn.Parameter(t.float()) for t in tensors(0, (4, 3), (5,))]
    v = tensors(1, (4, 3), (5,))
    optimizer = torch.optim.SGD(w, lr=0.1, momentum=0.9)
    for p, t in zip(w, v, strict=True):
        optimizer.state[p]["momentum_buffer"] = (size * t).float()
    found = sam_gradient(
        lambda x: x.mean() * sum(p.square().sum() for p in w),
        w,
        (torch.ones(2),),
        rho=1.0,
        ascent=AlongMomentum(optimizer),
    ).gradients
    length = torch.cat([t.flatten() for t in v]).norm()
    moved = 0.0 if size < 1e-40 else 1.0
    expected = [2.0 * (p.detach().double() - moved * t / length) for p, t in zip(w, v, strict=True)]
    assert relative_error([g.double() for g in found], expected) <= 1e-5


@pytest.mark.parametrize("kind", ["dense", "one hot", "parts", "two parts"])
def test_norms_are_right_where_squares_lose_digits_but_are_not_zero(kind):
    for size in (1e-23, 1e-22, 1e-21, 1e-20, 1e-19, 1e-11, 1e-10, 1e-9, 1e18, 1e19):
        a, formed = held(kind, 1, 0)
        by = torch.full((4,), size, dtype=torch.float64)
        found = squared_norms([a.scaled(by)], 4)
        torch.testing.assert_close(found, formed.flatten(1).square().sum(1) * size**2, rtol=1e-5, atol=0.0)


class Flipped(nn.Module):
    """A layer that multiplies with its weight on the right."""

    def __init__(self, p, q):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(p, q))

    def forward(self, x):
        return x @ self.w


WIDENING = {
    "linear": lambda: ([nn.Linear(4, 5), nn.Linear(5, 9), nn.Linear(9, 12)], (B, 4)),
    "flipped": lambda: ([Flipped(4, 5), Flipped(5, 9), Flipped(9, 12)], (B, 4)),
    "narrowing and flipped": lambda: ([Flipped(12, 9), Flipped(9, 5), Flipped(5, 3)], (B, 12)),
    "convolutions": lambda: ([nn.Conv2d(2, 3, 2), nn.Conv2d(3, 9, 2), nn.Conv2d(9, 20, 2)], (B, 2, 4, 4)),
}
"""Layers, whose perturbation is small vectors of one side and large ones of the other."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", WIDENING)
def test_perturbed_layers_pass_on_the_gradient_whatever_side_of_them_is_wider(kind, engine):
    def found(dtype, scale, engine):
        layers, shape = WIDENING[kind]()
        module = seeded(nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())])).to(dtype)
        (x,) = tensors(1, shape)
        params = list(module.parameters())
        batch = (x.to(dtype),)
        options = {"rho": RHO, "m": 1, "engine": engine}
        gradients = sam_gradient(
            lambda x: module(x).square().mean() * scale, params, batch, **options
        ).gradients
        return [g.double() / scale for g in gradients]

    expected = found(torch.float64, 1.0, "loop")
    for scale in (1e-30, 1e-20, 1e20, 1e30):
        assert_close(found(torch.float32, scale, engine), expected, 3e-5)


def test_adaptive_step_of_small_weights_is_free_of_the_scale():
    w, v, g, h = tensors(0, (4, 3), (5,), (4, 3), (5,))
    small = [1e-6 * t for t in (w, v)]
    for by, units in (
        ("element", [t.abs() for t in small]),
        ("filter", [small[0].norm(dim=1, keepdim=True), small[1].abs()]),
    ):
        along = [u * t for u, t in zip(units, (g, h), strict=True)]
        length = torch.cat([t.flatten() for t in along]).norm()
        expected = [0.1 * u * t / length for u, t in zip(units, along, strict=True)]
        for size in (1e-30, 1e30):
            gradient = [(size * t).float() for t in (g, h)]
            step = AscentStep([t.float() for t in small], None, gradient, size, 0.1, 0.1)
            found = Adaptive(eta=0.0, by=by, scaled="*")(step)
            assert relative_error([t.double() for t in found], expected) <= 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_realised_norm_of_tiny_weights_is_that_of_the_perturbation(engine):
    a, b = (nn.Parameter((1e-22 * t).float()) for t in tensors(0, (4, 3), (5,)))
    found = sam_gradient(
        lambda x: (x @ a).square().mean() * 1e22 + b.sum(),
        [a, b],
        (tensors(1, (B, 4))[0].float(),),
        rho=1e-23,
        m=1,
        engine=engine,
        diagnostics=True,
    ).diagnostics
    torch.testing.assert_close(found.realised_norm, torch.full((B,), 1e-23), rtol=1e-4, atol=0.0)
