"""bfloat16 and float16 weights: rounded without bias, moved and accumulated in float32, never overflowing."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from lowland import SAM, perturbed, sam_gradient
from lowland.sam.noise import Noise
from lowland.sam.precision import stochastically_rounded

from .naive import bits, identity, norm, tensors

HALVES = [torch.bfloat16, torch.float16]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def grid(dtype):
    """Every finite number of ``dtype``, in order, from its 2^16 bit patterns."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).double()
    return values[values.isfinite()].unique()


GRIDS = {dtype: grid(dtype) for dtype in HALVES}


def neighbours(x, dtype):
    """The numbers of ``dtype`` next to each ``x``: the largest that is not above, the smallest not below."""
    numbers, x = GRIDS[dtype], x.double()
    below = numbers[(torch.searchsorted(numbers, x, right=True) - 1).clamp(min=0)]
    above = numbers[torch.searchsorted(numbers, x).clamp(max=len(numbers) - 1)]
    return below, above


def rounded(values, dtype, seed=0):
    return stochastically_rounded(torch.as_tensor(values, dtype=torch.float32), dtype, Noise(seed))


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=40, deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=30), seed=st.integers(0, 99))
@example(values=[1e-37, 1e-39, 1e-45, -1e-41, 6e-8, -3e-8, 65504.0, 65519.0, 65520.0], seed=0)
@example(values=[3.3895314e38, 3.4028235e38, -3.4028235e38, 1.17549435e-38, 6.1035e-5, 6.0976e-5], seed=0)
def test_result_is_one_of_the_two_neighbours(dtype, values, seed):
    x = torch.tensor(values)
    found = rounded(x, dtype, seed)
    assert found.dtype == dtype
    below, above = neighbours(x, dtype)
    assert ((found.double() == below) | (found.double() == above)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_of_the_type_stays_as_it_is(dtype):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    for seed in range(20):
        found = rounded(x.float(), dtype, seed)
        assert torch.equal(x.isnan(), found.isnan())
        assert torch.equal(x[~x.isnan()], found[~x.isnan()])


def test_noise_of_other_keys_is_other_noise():
    noise = Noise(3)
    seeds = [n.generator(torch.device("cpu")).initial_seed() for n in map(noise.of, range(50))]
    for chunk in (noise.next(), noise.next()):
        seeds += [chunk.of(key).generator(torch.device("cpu")).initial_seed() for key in range(50)]
    assert len(set(seeds)) == 150
    assert noise.of(7).generator(torch.device("cpu")).initial_seed() == seeds[7]


def test_means_of_mixed_types_are_taken_in_float32():
    """The first parameter is of float32, the second is not."""
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2).bfloat16())]
    x = torch.arange(1.0, 9.0)
    slopes = [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 1.0])]
    found = sam_gradient(linear(params, slopes), params, (x,), rho=0.01, m=2, engine="loop").gradients
    for g, slope, p in zip(found, slopes, params, strict=True):
        assert torch.equal(g, (slope * x.mean()).to(p.dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_signed_zeros_infinities_and_nan_are_kept(dtype):
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    found = rounded(x, dtype)
    assert bits(found[:4]) == bits(x[:4].to(dtype))
    assert found[4].isnan()


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(-4.0, 4.0, width=32),
    exponent=st.integers(-20, 10),
    seed=st.integers(0, 99),
)
@example(x=3.0, exponent=-26, seed=0)
@example(x=1.5, exponent=-134, seed=0)
def test_mean_is_the_number_itself(dtype, x, exponent, seed):
    x = torch.tensor(math.ldexp(x, exponent))
    copies = 20_000
    below, above = neighbours(x, dtype)
    gap = (above - below).item()
    chance = (x.double() - below).item() / gap if gap else 0.0
    allowed = gap * (5.5 * math.sqrt(chance * (1 - chance) / copies) + 8 / copies)
    mean = rounded(x.expand(copies), dtype, seed).double().mean().item()
    assert abs(mean - x.item()) <= allowed


@pytest.mark.parametrize("dtype", HALVES)
def test_nothing_finite_becomes_infinite(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, math.nextafter(largest, math.inf), torch.finfo(torch.float32).max])
    for seed in range(20):
        assert rounded(x, dtype, seed).tolist() == [largest] * 3
        assert rounded(-x, dtype, seed).tolist() == [-largest] * 3


def test_numbers_below_the_smallest_normal_one_are_rounded_as_others_are():
    x = torch.tensor([1e-37, 1e-39, -1e-39, 2.0**-133, 1.0])
    below, above = neighbours(x, torch.bfloat16)
    found = rounded(x, torch.bfloat16).double()
    assert ((found == below) | (found == above)).all()


def test_elements_and_calls_are_rounded_independently():
    noise, x = Noise(0), torch.full((4000,), 1.0 + 2.0**-8)
    first = stochastically_rounded(x, torch.bfloat16, noise) > 1
    second = stochastically_rounded(x, torch.bfloat16, noise) > 1
    for event in (first, second, first ^ second, first[1:] ^ first[:-1]):
        assert abs(event.double().mean() - 0.5) < 0.05


def linear(params, slopes, seen=None):
    """A loss that is linear in the weights, whose gradients are ``slopes``; ``seen`` collects the weights."""

    def loss(x):
        if seen is not None:
            seen.append([p.detach().clone() for p in params])
        return sum((p.float() * g).sum() for p, g in zip(params, slopes, strict=True)) * x.mean()

    return loss


def small_weights(total, dtype, seed=0):
    """Two tensors of ``0.02 N(0, 1)``, and slopes."""
    shapes = [(total // 4,), (total - total // 4,)]
    w = tensors(seed, *shapes, dtype=torch.float32)
    return [nn.Parameter((0.02 * t).to(dtype)) for t in w], tensors(seed + 1, *shapes, dtype=torch.float32)


def check_rise(total, rho, dtype=torch.bfloat16):
    params, slopes = small_weights(total, dtype)
    seen, before = [], identity(params)
    sam_gradient(linear(params, slopes, seen), params, (torch.ones(2),), rho=rho)
    rises, nearest = 0.0, 0.0
    for start, there, g in zip(*seen, slopes, strict=True):
        rises += ((there.double() - start.double()) * g).sum().item()
        e = rho * g / norm(slopes)
        nearest += (((start.float() + e).to(dtype).double() - start.double()) * g).sum().item()
    assert rises == pytest.approx(rho * norm(slopes), rel=0.02)
    assert abs(nearest / (rho * norm(slopes)) - 1.0) > 0.1, "rounding to the nearest must not do as well"
    assert identity(params) == before


def test_linear_loss_rises_by_rho_times_the_norm_of_its_gradient():
    """As hard as rho = 0.05 on 1e7 weights: the same step per weight, a seventh of bfloat16's spacing."""
    check_rise(1_000_000, 0.05 / math.sqrt(10))


@pytest.mark.slow
def test_linear_loss_of_ten_million_weights_rises_by_rho_times_the_norm_of_its_gradient():
    check_rise(10_000_000, 0.05)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("slope", [1e-7, 0.0])
def test_tiny_gradients_of_half_weights_stay_finite(dtype, slope):
    params = [nn.Parameter(torch.ones(300, dtype=dtype)), nn.Parameter(torch.full((4, 25), 2.0, dtype=dtype))]
    slopes, seen, before = [torch.full(p.shape, slope) for p in params], [], identity(params)
    found = sam_gradient(linear(params, slopes, seen), params, (torch.ones(2),), rho=5.0).gradients
    assert all(torch.equal(g, s.to(dtype)) for g, s in zip(found, slopes, strict=True))
    assert all(w.isfinite().all() for weights in seen for w in weights)
    moves = [(b - a).double() for a, b in zip(seen[0], seen[-1], strict=True)]
    assert torch.cat([m.flatten() for m in moves]).mean().item() == pytest.approx(
        5.0 / math.sqrt(400) if slope else 0.0, rel=0.01
    )
    assert identity(params) == before


@pytest.mark.parametrize("rho", [0.0, 0.01])
def test_many_groups_of_bfloat16_accumulate_in_float32(rho):
    params = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2).bfloat16())]
    x = torch.arange(1.0, 129.0)
    slopes = [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 1.0])]
    found = sam_gradient(linear(params, slopes), params, (x,), rho=rho, m=1, engine="loop").gradients
    assert [g.dtype for g in found] == [torch.bfloat16] * 2
    for g, slope in zip(found, slopes, strict=True):
        assert torch.equal(g, (slope * x.mean()).bfloat16()), "the mean, rounded once"


def test_gradients_have_the_types_of_their_parameters_and_share_one_norm():
    types = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    params = [nn.Parameter(torch.full((100,), float(i + 1), dtype=t)) for i, t in enumerate(types)]
    slopes = [torch.full((100,), s) for s in (3.0, -1.0, 2.0, 0.5)]
    seen, before = [], identity(params)
    result = sam_gradient(linear(params, slopes, seen), params, (torch.ones(3),), rho=2.0, diagnostics=True)
    assert [g.dtype for g in result.gradients] == types
    for start, there, g in zip(*seen, slopes, strict=True):
        intended = 2.0 * g[0].item() / norm(slopes)
        assert (there.double() - start.double()).mean().item() == pytest.approx(intended, rel=0.03)
    assert result.diagnostics.gradient_norm.item() == pytest.approx(norm(slopes), rel=1e-6)
    assert identity(params) == before


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", [{}, {"m": 1}, {"steps": 3}, {"l2": 0.1}])
def test_half_weights_come_back_bit_for_bit(dtype, options):
    params, slopes = small_weights(400, dtype)
    before = identity(params)
    sam_gradient(linear(params, slopes), params, (torch.ones(3),), rho=0.5, **options)
    assert identity(params) == before


def moves_of(params, slopes, *, groups=1, **options):
    """What each group's perturbed pass saw added to the weights."""
    seen = []
    SAM(params, rho=0.01, m=1, **options).backward(linear(params, slopes, seen), torch.ones(groups))
    return [
        torch.cat([(b.double() - a.double()).flatten() for a, b in zip(seen[i], seen[i + 1], strict=True)])
        for i in range(0, len(seen), 2)
    ]


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_differs_between_groups_and_steps(dtype):
    params = [nn.Parameter(torch.ones(4000, dtype=dtype)), nn.Parameter(torch.ones(9, 100, dtype=dtype))]
    slopes = [torch.full(p.shape, 2.0) for p in params]
    first, second = moves_of(params, slopes, groups=2)
    (third,) = moves_of(params, slopes)
    for a, b in ((first, second), (first, third), (second, third)):
        assert not torch.equal(a, b)
    up = [move > 0 for move in (first, second)]
    assert up[0].any(), "some weights are rounded up"
    assert (up[0] & up[1]).sum() < 0.6 * up[0].sum(), "and others the next time"


def test_rounding_is_reproducible_from_the_default_seed():
    params, slopes = small_weights(4000, torch.bfloat16)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append([*moves_of(params, slopes, groups=2), *moves_of(params, slopes)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize(
    ("types", "rho"),
    [
        ((torch.bfloat16, torch.float16), 0.0),
        ((torch.float32, torch.float64), 0.1),
        ((torch.bfloat16, torch.float32), [0.0, 0.1]),
    ],
    ids=["radius zero", "full precision", "half weights stay"],
)
def test_nothing_is_drawn_where_nothing_is_rounded(types, rho):
    params = [nn.Parameter(torch.ones(3, dtype=t)) for t in types]
    before = torch.get_rng_state()
    sam_gradient(linear(params, [torch.ones(3)] * 2), params, (torch.ones(4),), rho=rho, m=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_rounding_leaves_the_draws_of_both_passes_the_same():
    params, masks = [nn.Parameter(torch.ones(3).bfloat16()), nn.Parameter(torch.ones(2).bfloat16())], []

    def loss(x):
        masks.append(torch.rand(5))
        return sum(p.float().sum() for p in params) * x.mean()

    sam_gradient(loss, params, (torch.ones(2),), rho=0.1, m=1)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("dtype", HALVES)
def test_block_moves_half_weights_right_on_average_and_only_rows_of_a_sparse_perturbation(dtype):
    dense, table = (
        nn.Parameter(torch.ones(20_000, dtype=dtype)),
        nn.Parameter(torch.ones(4, 9000, dtype=dtype)),
    )
    before, e = identity([dense, table]), 2.0**-12
    rows = torch.sparse_coo_tensor([[1, 3]], torch.full((2, 9000), e), table.shape, check_invariants=True)
    with perturbed([dense, table], [torch.full(dense.shape, e), rows]):
        moved = (dense.double() - 1.0).mean().item(), (table.double() - 1.0).mean(1).tolist()
    spread = math.sqrt(e * torch.finfo(dtype).eps / 9000)
    assert moved[0] == pytest.approx(e, abs=5 * spread)
    assert moved[1] == [0.0, pytest.approx(e, abs=5 * spread), 0.0, pytest.approx(e, abs=5 * spread)]
    assert identity([dense, table]) == before
