"""The batched engine against the loop: the same gradients, loss, aux, buffers and diagnostics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import sam_gradient
from lowland.sam import (
    L2,
    Adaptive,
    ClippedUnnormalized,
    DecoupledWeighted,
    Friendly,
    Look,
    MicroBatches,
    Preconditioned,
    Random,
    RandomSubset,
    SurrogateGap,
    Unified,
    Unnormalized,
    Weighted,
    magnitude_only,
    stable,
)
from lowland.sam.batched.cost import Costs

from ..naive import leaves, norm, seeded, tensors
from .agreement import assert_replay_is_the_step, in_chunks_of
from .models import MODELS, B, trained

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

ALL_AT_ONCE = 2**40


def found_by(engine, model, make=None, **options):
    """The result, the buffers afterwards and the number of times that the loss ran.

    ``make`` makes options that hold a state, or depend on the parameters, anew.
    """
    module, loss, batch = model()
    options = options | (make(trained(module)) if make else {})
    calls = []

    def counted(*group):
        calls.append(1)
        return loss(*group)

    torch.manual_seed(0)
    batch = options.pop("batch", batch)
    result = sam_gradient(counted, trained(module), batch, module=module, engine=engine, **options)
    return result, dict(module.named_buffers()), len(calls)


def assert_engines_agree(model, make=None, *, max_memory=ALL_AT_ONCE, **options):
    """Runs both and compares everything that they return.

    Returns:
        Both results, and how often the batched engine ran the loss.
    """
    options = {"rho": 0.2, **options}
    expected, buffers, _ = found_by("loop", model, make, **options)
    found, own_buffers, calls = found_by("batched", model, make, max_memory=max_memory, **options)
    assert_same(found, expected)
    assert_same_buffers(own_buffers, buffers)
    return found, expected, calls


def assert_same_buffers(found, expected):
    assert found.keys() == expected.keys()
    for name, buffer in expected.items():
        torch.testing.assert_close(found[name], buffer, rtol=1e-12, atol=1e-13)


def assert_same(found, expected, tolerance=1e-10):
    assert [g is None for g in found.gradients] == [g is None for g in expected.gradients]
    pairs = zip(found.gradients, expected.gradients, strict=True)
    present = [(g, h) for g, h in pairs if g is not None]
    assert all(g.shape == h.shape and g.dtype == h.dtype for g, h in present)
    size = norm([h for _, h in present])
    assert size > 0.0
    assert norm([g - h for g, h in present]) <= tolerance * size
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-14)
    assert_same_aux(found.aux, expected.aux)
    assert (found.climb_gradients is None) == (expected.climb_gradients is None)
    if found.climb_gradients is not None:
        torch.testing.assert_close(found.climb_gradients, expected.climb_gradients, rtol=1e-10, atol=1e-13)
    assert (found.diagnostics is None) == (expected.diagnostics is None)
    if found.diagnostics is not None:
        assert_same_diagnostics(found.diagnostics, expected.diagnostics)


def assert_same_aux(found, expected):
    assert structure(found) == structure(expected)
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def structure(element):
    if isinstance(element, torch.Tensor):
        return tuple(element.shape), element.dtype, element.requires_grad
    if isinstance(element, dict):
        return {key: structure(value) for key, value in element.items()}
    return None if element is None else (type(element), [structure(value) for value in element])


def assert_same_diagnostics(found, expected):
    for name in type(expected).__dataclass_fields__:
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-12, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_gradient_loss_aux_and_buffers_of_the_loop(name):
    for m in (1, 2, 3, B):
        assert_agreement(name, m)


@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_step_of_every_model_is_the_step_bit_for_bit(name):
    assert_replay_is_the_step(MODELS[name], m=2)


def assert_agreement(name, m):
    calls = assert_engines_agree(MODELS[name], m=m)[2]
    probe, passes, ragged = 1, 2, 2 if m in (2, 3) else 0
    assert calls <= probe + passes + ragged


@pytest.mark.parametrize("name", MODELS)
def test_result_is_the_same_whether_gradients_are_formed_or_not(name, monkeypatch):
    options = {"rho": 0.2, "m": 3, "l2": 0.1, "steps": 2, "step_size": 0.7, "scale": 8.0}
    expected, buffers, _ = found_by("loop", MODELS[name], **options)
    for costs in (Costs(apart=1.0, formed=0.0), Costs(apart=0.0, formed=1.0)):
        for rule in ("linear", "convolution", "embedding"):
            monkeypatch.setattr(
                f"lowland.sam.batched.rules.{rule}.costs_of_{rule}", lambda *_, costs=costs: costs
            )
        found, own_buffers, _ = found_by("batched", MODELS[name], max_memory=ALL_AT_ONCE, **options)
        assert_same(found, expected)
        assert_same_buffers(own_buffers, buffers)


# The other options are asked of a few models, which hold their gradients in different ways

FEW = {
    "dense": MODELS["linear_of_long_sequences"],
    "factors": MODELS["conv2d_of_narrow_maps"],
    "tied": MODELS["embedding_tied_to_a_transpose"],
    "statistics": MODELS["batch_norm"],
}


def cycled(*values):
    return lambda params: [values[i % len(values)] for i in range(len(params))]


def friendly(params):
    ascent = Friendly(sigma=0.7)
    ascent.load_state_dict({"average": [torch.full_like(p, 0.05) for p in params.values()]})
    return ascent


def preconditioned(params):
    """By second moments that differ from weight to weight by orders of magnitude."""
    optimizer = torch.optim.Adam(params.values(), lr=0.0)
    for p in params.values():
        second = torch.linspace(-6.0, 0.0, p.numel(), dtype=p.dtype).exp().reshape(p.shape)
        optimizer.state[p] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": second}
    return Preconditioned(optimizer)


ASCENTS = {
    "l2": lambda _: L2(),
    "unnormalized": lambda _: Unnormalized(),
    "clipped": lambda _: ClippedUnnormalized(),
    "unified": lambda _: Unified(0.3),
    "adaptive by element": lambda _: Adaptive(),
    "adaptive by filter": lambda _: Adaptive(by="filter"),
    "friendly": friendly,
    "preconditioned": preconditioned,
}


@pytest.mark.parametrize(("steps", "step_size", "l2"), [(1, 1.0, 0.0), (1, 2.5, 0.2), (3, 0.6, 0.2)])
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("name", FEW)
def test_every_ascent_climbs_as_in_the_loop(name, ascent, steps, step_size, l2):
    options = {"steps": steps, "step_size": step_size, "l2": l2, "rho": 0.3}
    found, *_ = assert_engines_agree(FEW[name], lambda p: {"ascent": ASCENTS[ascent](p)}, m=3, **options)
    assert (found.climb_gradients is not None) == (ascent == "friendly")


@pytest.mark.parametrize("ascent", ["l2", "adaptive by element", "adaptive by filter", "unnormalized"])
@pytest.mark.parametrize("name", FEW)
def test_a_recorded_step_of_every_ascent_is_the_step_bit_for_bit(name, ascent):
    module, *_ = FEW[name]()
    options = {"steps": 2, "step_size": 0.6, "l2": 0.2, "rho": 0.3, "scale": 4.0, "combine": Weighted(0.6)}
    assert_replay_is_the_step(FEW[name], m=2, ascent=ASCENTS[ascent](trained(module)), **options)


@pytest.mark.parametrize("ascent", ["l2", "adaptive by element", "adaptive by filter", "unnormalized"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", FEW)
def test_every_parameter_has_a_radius_of_its_own(name, ascent, steps):
    def options(params):
        return {"ascent": ASCENTS[ascent](params), "rho": cycled(0.3, 0.0, 0.1)(params)}

    assert_engines_agree(FEW[name], options, m=2, steps=steps, l2=0.1)
    assert_engines_agree(FEW[name], options, m=B, steps=steps, diagnostics=True, combine=SurrogateGap(0.3))


RANDOM = {
    "gaussian": lambda: Random(),
    "uniform": lambda: Random("uniform"),
    "gaussian multiplicative": lambda: Random("gaussian", "multiplicative"),
    "uniform multiplicative": lambda: Random("uniform", "multiplicative"),
    "subset": lambda: RandomSubset(0.5),
    "subset of an adaptive ascent": lambda: RandomSubset(0.5, Adaptive()),
}


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("ascent", RANDOM)
def test_random_ascents_draw_what_they_draw_in_the_loop(ascent, measured):
    for m in (1, 2):
        options = {"m": m, "l2": 0.1, "diagnostics": measured, "bn_stats": "first"}
        assert_engines_agree(FEW["factors"], lambda _: {"ascent": RANDOM[ascent]()}, **options)
        assert_engines_agree(MODELS["instance_norm"], lambda _: {"ascent": RANDOM[ascent]()}, **options)


@pytest.mark.parametrize("combine", [None, Weighted(0.6)])
@pytest.mark.parametrize("examples", [B, 9])
@pytest.mark.parametrize("name", FEW)
def test_groups_climb_on_another_batch(name, examples, combine):
    def options(_):
        *_, batch = FEW[name]()
        other = tuple(torch.cat([t.flip(0), t])[:examples] for t in batch)
        return {"ascent_batch": other, "combine": combine}

    assert_engines_agree(FEW[name], options, m=2, l2=0.1, steps=2, diagnostics=name != "statistics")


def several_on_one(_):
    *_, batch = FEW["tied"]()
    return {"ascent_batch": tuple(t.flip(0)[:4] for t in batch)}


def test_batch_that_several_groups_climb_on_is_left_to_the_loop(monkeypatch):
    expected, *_ = found_by("loop", FEW["tied"], several_on_one, m=1, rho=0.2)
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    with pytest.warns(UserWarning, match="an ascent_batch that several groups climb on"):
        found, *_ = found_by("auto", FEW["tied"], several_on_one, m=1, rho=0.2)
    assert_same(found, expected)
    with pytest.raises(RuntimeError, match="an ascent_batch that several groups climb on"):
        found_by("batched", FEW["tied"], several_on_one, m=1, rho=0.2)


@pytest.mark.parametrize("size", [2, 4])
def test_batch_in_parts_is_cut_across_them(size):
    def options(_):
        *_, batch = FEW["tied"]()
        return {"batch": MicroBatches([tuple(t[i : i + size] for t in batch) for i in range(0, B, size)])}

    assert_engines_agree(FEW["tied"], options, m=2)


@pytest.mark.parametrize("size", [1, 3])
def test_group_in_several_parts_is_for_the_loop(size):
    def options(_):
        *_, batch = FEW["tied"]()
        return {"batch": MicroBatches([tuple(t[i : i + size] for t in batch) for i in range(0, B, size)])}

    with pytest.raises(RuntimeError, match="a group in several MicroBatches"):
        found_by("batched", FEW["tied"], options, m=2, rho=0.2)


COMBINES = {
    "gap": lambda _: SurrogateGap(0.4),
    "weighted": lambda _: Weighted(0.7),
    "decoupled": lambda p: DecoupledWeighted(0.7, torch.optim.SGD(p.values(), lr=0.1)),
    "look": lambda _: Look(),
    "magnitude": lambda _: magnitude_only,
    "stable": lambda _: stable,
}


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("name", [*FEW, "unused", "blind"])
def test_every_rule_combines_the_two_gradients_of_the_loop(name, combine):
    model = FEW.get(name, MODELS["unused_parameters"])
    ascent = Random() if name == "blind" else L2()
    assert_engines_agree(
        model, lambda p: {"combine": COMBINES[combine](p)}, m=2, l2=0.1, scale=4.0, ascent=ascent
    )


MEASURED = ["mlp", "linear_of_long_sequences", "conv2d_of_narrow_maps", "conv2d_in_groups", "group_norm"]
MEASURED += ["embedding_tied_to_a_transpose", "parts_of_a_matrix", "unused_parameters", "layer_scale"]
MEASURED += ["frozen_parameters", "batch_norm_in_evaluation", "embedding_with_padding"]


@pytest.mark.parametrize("m", [1, 2, B])
@pytest.mark.parametrize("name", MEASURED)
def test_diagnostics_of_every_group_are_those_of_the_loop(name, m):
    ascent = Unnormalized() if m == 1 else L2()
    options = {"steps": 2, "step_size": 0.7, "l2": 0.1, "scale": 4.0} if m == 2 else {}
    found, *_ = assert_engines_agree(MODELS[name], m=m, diagnostics=True, ascent=ascent, **options)
    assert len(found.diagnostics.loss) == -(-B // m)


@pytest.mark.parametrize("rho", [0.0, 0.2])
@pytest.mark.parametrize("name", FEW)
def test_without_a_radius_the_gradient_is_plain(name, rho):
    for measured in (False, True):
        options = {"m": 2, "l2": 0.1, "scale": 4.0, "diagnostics": measured and name != "statistics"}
        found, *_ = assert_engines_agree(FEW[name], rho=rho, **options)
        _, plain, *_ = assert_engines_agree(FEW[name], rho=0.0, **options)
        error = norm(differences(found, plain)) / norm(plain.gradients)
        assert error < 1e-12 if rho == 0.0 else error > 1e-3


def differences(found, expected):
    return [a - b for a, b in zip(found.gradients, expected.gradients, strict=True)]


@pytest.mark.parametrize("m", [1, 2, B])
def test_groups_are_weighted_as_they_are_told_and_left_out_at_zero(m):
    for name in ("tied", "dense"):
        assert_engines_agree(FEW[name], m=m, weight=lambda x, *_: float(x.double().abs().sum()), l2=0.1)
    own = MODELS["embedding_tied_to_the_output"]
    result, *_ = assert_engines_agree(own, m=1, weight=lambda x: float(x[0, 0] > 2), diagnostics=True)
    assert 0 < len(result.diagnostics.loss) < B


@pytest.mark.parametrize("bn_stats", ["first", "frozen"])
@pytest.mark.parametrize(
    "name", ["batch_norm", "instance_norm", "batch_norm_partly_in_evaluation", "counted_calls"]
)
def test_buffers_move_in_the_passes_that_they_are_told_to(name, bn_stats):
    for m in (1, 3):
        assert_engines_agree(MODELS[name], m=m, bn_stats=bn_stats)
        assert_engines_agree(MODELS[name], m=m, bn_stats=bn_stats, steps=2, combine=SurrogateGap(0.3))
        assert_engines_agree(MODELS[name], m=m, bn_stats=bn_stats, rho=0.0)
        assert_engines_agree(MODELS[name], m=m, bn_stats=bn_stats, ascent=Random())


def test_buffers_move_on_the_batch_and_not_on_the_batch_of_the_climb():
    for bn_stats in ("first", "frozen"):
        for combine in (None, stable):

            def options(_, combine=combine):
                *_, batch = MODELS["batch_norm"]()
                return {"ascent_batch": tuple(t.flip(0) + 1.0 for t in batch), "combine": combine}

            assert_engines_agree(MODELS["batch_norm"], options, m=2, bn_stats=bn_stats)


@pytest.mark.parametrize("name", FEW)
def test_number_of_groups_at_once_never_changes_the_result(name):
    counts = set()
    for size in (1, 2, 3, 5, 100):
        options = {"l2": 0.1, "combine": SurrogateGap(0.3), "ascent": Friendly()}
        with in_chunks_of(size):
            counts.add(assert_engines_agree(FEW[name], m=1, **options)[2])
    assert len(counts) > 2


@pytest.mark.parametrize("scale", [3.0, 65536.0])
def test_scale_multiplies_the_gradient_and_nothing_else(scale):
    once = found_by("batched", FEW["factors"], m=2, rho=0.2, l2=0.1, steps=2, diagnostics=True)[0]
    found = found_by("batched", FEW["factors"], m=2, rho=0.2, l2=0.1, steps=2, diagnostics=True, scale=scale)[
        0
    ]
    assert norm([a / scale - b for a, b in zip(found.gradients, once.gradients, strict=True)]) < 1e-12
    torch.testing.assert_close(found.loss, once.loss)
    assert_same_diagnostics(found.diagnostics, once.diagnostics)


def blank(values):
    """A model whose second example has these values: zeros climb nowhere, infinities are not climbed."""

    def model():
        module, loss, (x, y) = MODELS["linear_without_bias"]()
        x = x.clone()
        x[1] = values
        return module, loss, (x, y)

    return model


@pytest.mark.parametrize("ascent", ASCENTS)
def test_group_without_a_gradient_climbs_nowhere(ascent):
    options = {"m": 1, "diagnostics": True, "steps": 1 if ascent == "friendly" else 2}
    _, expected, _ = assert_engines_agree(blank(0.0), lambda p: {"ascent": ASCENTS[ascent](p)}, **options)
    assert expected.diagnostics.climbed.tolist() == [i != 1 or ascent == "friendly" for i in range(B)]


@pytest.mark.parametrize("diagnostics", [False, True])
def test_group_whose_gradient_is_not_finite_is_not_climbed(diagnostics):
    options = {"m": 1, "rho": 0.2, "diagnostics": diagnostics}
    expected, *_ = found_by("loop", blank(torch.inf), **options)
    found, *_ = found_by("batched", blank(torch.inf), **options)
    assert not all(g.isfinite().all() for g in expected.gradients)
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=1e-11, atol=1e-13, equal_nan=True)
    if diagnostics:
        assert_same_diagnostics(found.diagnostics, expected.diagnostics)


# Randomness


def dropping(examples=8):
    """Dropout in a network and in attention; every group of two has the same data."""

    def model():
        net = [nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh()]
        attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        module = seeded(nn.ModuleDict({"net": nn.Sequential(*net), "attention": attention}))
        x = tensors(1, (2, 3, 4))[0].repeat(examples // 2, 1, 1)

        def loss(x):
            y = module["net"](x)
            kept = F.dropout(torch.ones_like(x), 0.25)
            return module["attention"](y, y, y)[0].square().mean(), kept

        return module, loss, (x,)

    return model


def test_both_passes_see_the_same_draws():
    for options in ({}, {"steps": 2}, {"combine": SurrogateGap(0.1)}):
        found = found_by("batched", dropping(), m=2, rho=1e-9, diagnostics=True, **options)[0].diagnostics
        torch.testing.assert_close(found.loss, found.perturbed_loss, rtol=1e-7, atol=0.0)
        torch.testing.assert_close(found.cosine, torch.ones_like(found.cosine), rtol=1e-7, atol=0.0)


def test_groups_see_draws_of_their_own():
    found = found_by("batched", dropping(), m=2, rho=0.1, diagnostics=True)[0].diagnostics
    assert len(set(found.loss.tolist())) == 4


def test_draws_are_distributed_as_in_the_loop():
    for engine in ("loop", "batched"):
        kept = found_by(engine, dropping(40), m=2, rho=0.1)[0].aux
        assert set(kept.flatten().tolist()) == {0.0, 1 / 0.75}
        assert abs(kept.mean().item() - 1.0) < 0.08


def test_the_next_call_draws_anew_and_the_generator_stands_behind_one_pass():
    module, loss, batch = dropping()()
    options = {"m": 2, "engine": "batched", "module": module}
    torch.manual_seed(0)
    first = sam_gradient(loss, trained(module), batch, rho=0.1, **options)
    second = sam_gradient(loss, trained(module), batch, rho=0.1, **options)
    assert not torch.equal(first.aux, second.aux)
    states = []
    for rho, steps in ((0.0, 1), (0.1, 1), (0.1, 3)):
        torch.manual_seed(0)
        sam_gradient(loss, trained(module), batch, rho=rho, steps=steps, **options)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
