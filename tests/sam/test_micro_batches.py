"""One batch in several parts: one climb from their accumulated gradient, whatever their sizes and shapes."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lowland import L2, SAM, ClippedUnnormalized, Unnormalized, perturbed, sam_gradient
from lowland.sam import FromLoader, MicroBatches, SurrogateGap, magnitude_only

from .naive import (
    added,
    bn_conv,
    buffers_of,
    identity,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    rows,
    seeded,
    squared,
    squared_per_example,
    tensors,
    value_and_gradient,
)

ASCENTS = {"l2": L2(), "unnormalized": Unnormalized(), "clipped": ClippedUnnormalized()}
modest = settings(max_examples=15, deadline=None)


def in_parts(batch, sizes):
    """``batch`` cut into parts of the given sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [rows(batch, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def gradient_of_parts(module, loss, parts, **options):
    params = list(module.parameters())
    return sam_gradient(functools.partial(loss, module), params, MicroBatches(parts), **options)


@pytest.mark.parametrize("loss", [squared, squared_per_example])
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("options", [{}, {"steps": 3, "step_size": 0.5}, {"l2": 0.3}])
def test_one_climb_from_the_accumulated_gradient_is_that_of_the_whole_batch(loss, ascent, options):
    module, batch = mlp(), regression(examples=9)
    expected = naive_sam(module, loss, batch, rho=0.4, ascent=ascent, **options)
    parts = in_parts(batch, [4, 1, 4])
    result = gradient_of_parts(module, loss, parts, rho=0.4, ascent=ASCENTS[ascent], **options)
    assert relative_error(result.gradients, expected.gradients) < 1e-12
    assert result.loss.item() == pytest.approx(expected.loss, rel=1e-13)
    climbing_each = [
        naive_sam(module, loss, part, rho=0.4, ascent=ascent, **options).gradients for part in parts
    ]
    shares = [4 / 9, 1 / 9, 4 / 9]
    mean = [sum(s * g for s, g in zip(shares, gs, strict=True)) for gs in zip(*climbing_each, strict=True)]
    assert relative_error(mean, expected.gradients) > 1e-4, "climbing on each part is something else"


@pytest.mark.filterwarnings("ignore:.*a group in several MicroBatches")  # said where others run at once
@modest
@example(sizes=[3, 4, 4, 4, 4], m=2, seed=0)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 9))
def test_groups_run_across_the_borders_of_parts(sizes, m, seed):
    module, batch = mlp(seed), regression(seed + 1, examples=sum(sizes))
    expected = naive_sam(module, squared, batch, rho=0.4, m=m)
    result = gradient_of_parts(module, squared, in_parts(batch, sizes), rho=0.4, m=m, diagnostics=True)
    assert relative_error(result.gradients, expected.gradients) < 1e-12
    assert result.diagnostics.group_size.tolist() == expected.sizes
    assert result.diagnostics.perturbed_loss.tolist() == pytest.approx(expected.perturbed_losses, rel=1e-12)


def test_each_group_is_evaluated_part_by_part_in_both_passes():
    module, calls = mlp(), []

    def loss(x, y):
        calls.append(len(x))
        return squared(module, x, y)

    parts = in_parts(regression(examples=7), [2, 4, 1])
    sam_gradient(loss, list(module.parameters()), MicroBatches(parts), rho=0.4, m=3)
    assert calls == [2, 1, 2, 1, 3, 3, 1, 1]


class Tagger(nn.Module):
    """A recurrent tagger, for sequences of any length."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 3)
        self.recurrent = nn.GRU(3, 4, batch_first=True)
        self.out = nn.Linear(4, 5)

    def forward(self, words):
        return self.out(self.recurrent(self.words(words))[0])


def sequences(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, 7, shape, generator=generator), torch.randint(0, 5, shape, generator=generator))
        for shape in shapes
    ]


def token_loss(module, words, tags):
    return F.cross_entropy(module(words).flatten(0, 1), tags.flatten())


def mean_over_parts(module, loss, parts, weights, masses):
    """Value and gradient of the weighted mean of ``loss`` over ``parts`` at the given weights."""
    total, gradient = 0.0, [torch.zeros_like(w) for w in weights]
    for part, mass in zip(parts, masses, strict=True):
        value, g = value_and_gradient(module, loss, part, weights)
        total, gradient = total + mass * value / sum(masses), added(gradient, g, mass / sum(masses))
    return total, gradient


def naive_of_parts(module, loss, parts, masses, rho, climb_parts=None, climb_masses=None):
    """One group of several parts that cannot be one tensor; the climb perhaps on others."""
    w = [p.detach().clone() for p in module.parameters()]
    loss_at_w, g = mean_over_parts(module, loss, parts, w, masses)
    if climb_parts is not None:
        _, g = mean_over_parts(module, loss, climb_parts, w, climb_masses)
    e = [rho * t / norm(g) for t in g]
    return loss_at_w, mean_over_parts(module, loss, parts, added(w, e), masses)[1]


def test_sequences_of_different_lengths_share_one_climb():
    module = seeded(Tagger())
    parts = sequences(0, (3, 4), (1, 7), (2, 2))
    result = gradient_of_parts(module, token_loss, parts, rho=0.4)
    expected_loss, expected = naive_of_parts(module, token_loss, parts, [3, 1, 2], 0.4)
    assert relative_error(result.gradients, expected) < 1e-12
    assert result.loss.item() == pytest.approx(expected_loss, rel=1e-13)


def num_tokens(_, tags):
    return (tags != -100).sum()


def padded(seed):
    """Sequences whose tags are partly missing; the last part has none at all."""
    parts = sequences(seed, (3, 4), (2, 7), (2, 5), (1, 3))
    parts[0][1][0, 1:] = -100
    parts[1][1][:, 5:] = -100
    parts[3][1][:] = -100
    return parts


def test_weight_makes_the_mean_that_over_all_tokens():
    module, parts = seeded(Tagger()), padded(0)
    result = gradient_of_parts(module, token_loss, parts, rho=0.4, weight=num_tokens)

    def all_tokens(twin, *_):
        pairs = [(twin(words).flatten(0, 1), tags.flatten()) for words, tags in parts]
        return F.cross_entropy(torch.cat([x for x, _ in pairs]), torch.cat([t for _, t in pairs]))

    expected = naive_sam(module, all_tokens, (torch.zeros(1),), rho=0.4)
    assert relative_error(result.gradients, expected.gradients) < 1e-12
    assert result.loss.item() == pytest.approx(expected.loss, rel=1e-13)
    by_example = gradient_of_parts(module, token_loss, parts[:3], rho=0.4)
    assert relative_error(by_example.gradients, expected.gradients) > 1e-3


@pytest.mark.parametrize("m", [1, 2, 3])
def test_groups_are_weighted_by_their_tokens_and_left_out_without_any(m):
    module = seeded(Tagger())
    words, tags = sequences(3, (6, 5))[0]
    tags[0, 1:], tags[2:4], tags[5, :3] = -100, -100, -100
    result = sam_gradient(
        functools.partial(token_loss, module),
        list(module.parameters()),
        (words, tags),
        rho=0.4,
        m=m,
        weight=num_tokens,
        diagnostics=True,
    )
    found = [(words[i : i + m], tags[i : i + m]) for i in range(0, 6, m)]
    groups = [(group, num_tokens(*group).item()) for group in found if num_tokens(*group) > 0]
    total = sum(mass for _, mass in groups)
    expected = [torch.zeros_like(p) for p in module.parameters()]
    for group, mass in groups:
        expected = added(expected, naive_sam(module, token_loss, group, rho=0.4).gradients, mass / total)
    assert relative_error(result.gradients, expected) < 1e-12
    assert result.diagnostics.group_size.tolist() == [mass for _, mass in groups]


def test_loss_of_what_has_no_weight_is_never_asked_for():
    module, calls = seeded(Tagger()), []

    def loss(words, tags):
        calls.append(num_tokens(words, tags).item())
        return token_loss(module, words, tags)

    sam = SAM(module, rho=0.4, weight=num_tokens)
    value = sam.backward(loss, MicroBatches(padded(1)))
    assert value.isfinite()
    assert calls == [9, 10, 10] * 2


@pytest.mark.parametrize("m", [None, 1])
def test_batch_without_any_weight_is_refused_and_nothing_changes(m):
    module, batch = mlp(), regression()
    before, generator = identity(module), torch.get_rng_state()
    with pytest.raises(
        ValueError, match=r"^batch must hold at least one example of positive weight, got none\.$"
    ):
        SAM(module, rho=0.4, m=m, weight=lambda *_: 0).backward(functools.partial(squared, module), *batch)
    assert identity(module) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_below_zero_or_not_finite_are_refused(weight):
    module, batch = mlp(), regression()
    with pytest.raises(ValueError, match=rf"^weight must return a non-negative, finite number, got {weight}"):
        SAM(module, rho=0.4, weight=lambda *_: weight).backward(functools.partial(squared, module), *batch)


def test_batch_of_no_parts_is_refused():
    module = mlp()
    with pytest.raises(ValueError, match=r"^batch must hold at least one part, got none\.$"):
        gradient_of_parts(module, squared, [], rho=0.4)


@pytest.mark.parametrize("kind", ["loader", "generator", "lists", "iterator"])
def test_parts_come_from_anything_that_yields_them(kind):
    module, batch = mlp(), regression(examples=7)
    parts = in_parts(batch, [3, 3, 1])
    kinds = {
        "loader": lambda: DataLoader(TensorDataset(*batch), batch_size=3),
        "generator": lambda: (part for part in parts),
        "lists": lambda: [list(part) for part in parts],
        "iterator": lambda: iter(parts),
    }
    expected = naive_sam(module, squared, batch, rho=0.4, m=2)
    result = gradient_of_parts(module, squared, kinds[kind](), rho=0.4, m=2)
    assert relative_error(result.gradients, expected.gradients) < 1e-12


@pytest.mark.parametrize("m", [None, 2])
def test_parts_may_be_dicts(m):
    module, batch = mlp(), regression(examples=7)

    def loss(data):
        return squared(module, data["x"], data["more"][0])

    parts = [{"x": x, "more": [y], "none": None} for x, y in in_parts(batch, [3, 3, 1])]
    expected = naive_sam(module, squared, batch, rho=0.4, m=m)
    found = sam_gradient(loss, list(module.parameters()), MicroBatches(parts), rho=0.4, m=m)
    assert relative_error(found.gradients, expected.gradients) < 1e-12


@pytest.mark.parametrize("kind", ["list", "generator", "loader"])
@pytest.mark.parametrize("m", [1, 3, None])
def test_climb_on_a_whole_data_set_is_that_of_the_naive_formula(kind, m):
    module, batch, data = mlp(), regression(1), regression(2, examples=10)
    parts = in_parts(data, [4, 4, 2])
    source = {
        "list": parts,
        "generator": (part for part in parts),
        "loader": DataLoader(TensorDataset(*data), batch_size=4),
    }[kind]
    params = list(module.parameters())
    w = [p.detach().clone() for p in params]
    _, g = value_and_gradient(module, squared, data, w)
    e = [0.4 * t / norm(g) for t in g]
    expected = [torch.zeros_like(p) for p in params]
    step = m or 7
    for i in range(0, 7, step):
        group = rows(batch, i, i + step)
        _, found = value_and_gradient(module, squared, group, added(w, e))
        expected = added(expected, found, len(group[0]) / 7)
    result = sam_gradient(
        functools.partial(squared, module),
        params,
        batch,
        rho=0.4,
        m=m,
        ascent_batch=MicroBatches(source),
        engine="loop",
    )
    assert relative_error(result.gradients, expected) < 1e-12
    assert result.loss.item() == pytest.approx(squared(module, *batch).item(), rel=1e-13)


def test_climb_of_several_groups_on_a_data_set_evaluates_it_once():
    module, batch, data, calls = mlp(), regression(1), regression(2, examples=10), []

    def loss(x, y):
        calls.append(len(x))
        return squared(module, x, y)

    SAM(module, rho=0.4, m=3, source=FromLoader(in_parts(data, [4, 4, 2]))).backward(loss, *batch)
    assert calls == [4, 4, 2, 3, 3, 3, 3, 1, 1]


def test_climb_on_parts_of_different_lengths_and_weights():
    module, batch, climbed = seeded(Tagger()), padded(4)[:3], padded(5)[:3]
    masses, of_climbed = ([num_tokens(*part).item() for part in parts] for parts in (batch, climbed))
    _, expected = naive_of_parts(module, token_loss, batch, masses, 0.4, climbed, of_climbed)
    found = gradient_of_parts(
        module, token_loss, batch, rho=0.4, weight=num_tokens, ascent_batch=MicroBatches(climbed)
    )
    assert relative_error(found.gradients, expected) < 1e-12


@pytest.mark.parametrize("ascent", ASCENTS)
def test_scale_multiplies_the_gradient_of_parts_only(ascent):
    module, parts = mlp(), in_parts(regression(examples=7), [3, 4])
    options = {"rho": 0.4, "m": 2, "l2": 0.2, "ascent": ASCENTS[ascent]}
    once = gradient_of_parts(module, squared, parts, **options)
    scaled = gradient_of_parts(module, squared, parts, scale=1000.0, **options)
    assert relative_error([g / 1000 for g in scaled.gradients], once.gradients) < 1e-13
    assert scaled.loss == once.loss


@pytest.mark.parametrize("rule", [SurrogateGap(0.4), magnitude_only])
def test_rules_see_the_gradients_of_all_parts(rule):
    module, batch = mlp(), regression(examples=7)
    naive = naive_sam(module, squared, batch, rho=0.4, m=3)
    found = gradient_of_parts(module, squared, in_parts(batch, [2, 5]), rho=0.4, m=3, combine=rule)
    assert relative_error(found.gradients, rule(naive.at_weights, naive.gradients)) < 1e-12


@pytest.mark.parametrize("m", [1, 2, 3, 4, None])
def test_aux_is_joined_over_parts_and_groups_in_order(m):
    module, (x, y) = mlp(), regression(examples=7)

    def loss(x, y):
        out = module(x)
        return (out - y).square().mean(), {"out": out, "x": [x]}

    aux = sam_gradient(
        loss, list(module.parameters()), MicroBatches(in_parts((x, y), [2, 4, 1])), rho=0.4, m=m
    ).aux
    with torch.no_grad():
        assert torch.allclose(aux["out"], module(x), rtol=1e-13, atol=1e-14)
    assert torch.equal(aux["x"][0], x)


@pytest.mark.parametrize("m", [1, 2, 3, 4, None])
def test_scalars_beside_the_loss_are_one_vector_over_all_that_was_evaluated(m):
    module, batch, calls = mlp(), regression(examples=7), []

    def loss(x, y):
        calls.append(len(x))
        return squared(module, x, y), x.sum()

    parts = MicroBatches(in_parts(batch, [2, 4, 1]))
    aux = sam_gradient(loss, list(module.parameters()), parts, rho=0.0, m=m, engine="loop").aux
    assert aux.shape == (len(calls),)
    assert torch.allclose(aux, torch.stack([x.sum() for x in batch[0].split(calls)]))


def test_running_statistics_move_once_per_part():
    one, two = bn_conv(), bn_conv()
    batch = tuple(tensors(2, (8, 2, 5, 5), (8, 2, 2, 2)))
    parts = in_parts(batch, [3, 5])
    SAM(one, rho=0.2).backward(functools.partial(squared, one), MicroBatches(parts))
    for x, _ in parts:
        two(x)
    assert buffers_of(one) == buffers_of(two)


def test_both_passes_of_every_part_see_the_same_draws():
    module, draws = mlp(), []

    def loss(x, y):
        draws.append(torch.rand(()).item())
        return squared(module, x, y)

    parts = in_parts(regression(examples=6), [2, 2, 2])
    sam_gradient(loss, list(module.parameters()), MicroBatches(parts), rho=0.4, m=4)
    assert draws[0:2] == draws[2:4]
    assert draws[4] == draws[5]
    assert len(set(draws)) == 3


def test_unused_part_of_the_model_is_averaged_as_zero():
    a, b = (nn.Parameter(t) for t in tensors(3, (2,), (2,)))

    def loss(x):
        return a.square().sum() + (b.square().sum() if x.sum() > 0 else 0.0)

    parts = [(torch.zeros(3),), (torch.ones(1),)]
    found = sam_gradient(loss, [a, b], MicroBatches(parts), rho=0.1).gradients
    g = [2 * a.detach(), 2 * b.detach() / 4]
    with perturbed([a, b], [0.1 * t / norm(g) for t in g]):
        expected = [2 * a.detach().clone(), 2 * b.detach().clone() / 4]
    assert relative_error(found, expected) < 1e-13
