"""Which parameters are perturbed: by name, by pattern, by kind of layer, by group."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowland import SAM, Unnormalized, presets
from lowland.sam import norm_layers
from lowland.sam.choose import Chosen

from .naive import (
    added,
    bits,
    mlp,
    norm,
    num_examples,
    regression,
    relative_error,
    rows,
    seeded,
    squared,
    tensors,
    value_and_gradient,
)

modest = settings(max_examples=15, deadline=None)
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def naive_subset(module, batch, radii, *, m=None, normalized=True):
    """Only what has a radius is in the norm; e_i = rho_i g_i / |g of those|."""
    w = [p.detach().clone() for p in module.parameters()]
    total = num_examples(batch)
    m = m or total
    gradient, perturbations = [torch.zeros_like(p) for p in w], []
    for start in range(0, total, m):
        group = rows(batch, start, start + m)
        _, g = value_and_gradient(module, squared, group, w)
        length = norm([t for t, r in zip(g, radii, strict=True) if r > 0]) if normalized else 1.0
        e = [r * t / length for t, r in zip(g, radii, strict=True)]
        _, g = value_and_gradient(module, squared, group, added(w, e))
        gradient = added(gradient, g, num_examples(group) / total)
        perturbations.append(e)
    return gradient, perturbations


def spied(module, seen):
    """The loss, which notes the weights of each pass and whether each has its unperturbed bits."""
    start = [p.detach().clone() for p in module.parameters()]

    def loss(*group):
        pairs = list(zip(module.parameters(), start, strict=True))
        seen.append(([p.detach() - s for p, s in pairs], [bits(p) == bits(s) for p, s in pairs]))
        return squared(module, *group)

    return loss


def grads(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("m", [None, 3])
@pytest.mark.parametrize(
    ("perturb", "chosen"),
    [
        ("0.weight", ["0.weight"]),
        (["0.weight", "2.bias"], ["0.weight", "2.bias"]),
        ("*.bias", ["0.bias", "2.bias"]),
        ("2.*", ["2.weight", "2.bias"]),
        (("0.bias", "*weight"), ["0.weight", "0.bias", "2.weight"]),
        ("[02].bias", ["0.bias", "2.bias"]),
        ("*", NAMES),
    ],
)
def test_only_matching_parameters_move_and_the_norm_is_theirs(perturb, chosen, m):
    module, batch, seen = mlp(), regression(), []
    radii = [0.4 * (name in chosen) for name in NAMES]
    expected, perturbations = naive_subset(module, batch, radii, m=m)
    SAM(module, rho=0.4, m=m, perturb=perturb).backward(spied(module, seen), *batch)
    assert relative_error(grads(module), expected) < 1e-12
    for (e, intact), by_hand in zip(seen[1::2], perturbations, strict=True):
        assert relative_error(e, by_hand) < 1e-12
        assert intact == [name not in chosen for name in NAMES]
        assert norm(e) == pytest.approx(0.4, rel=1e-12)
    assert all(all(intact) for _, intact in seen[::2])


def test_parameters_that_are_not_perturbed_are_still_trained():
    module, batch = mlp(), regression()
    SAM(module, rho=0.4, perturb="0.*").backward(functools.partial(squared, module), *batch)
    assert all(g is not None and g.any() for g in grads(module))


@pytest.mark.parametrize("steps", [2, 3])
def test_several_steps_stay_in_the_ball_of_the_chosen_parameters(steps):
    module, batch, seen = mlp(), regression(), []
    sam = SAM(module, rho=0.4, perturb="2.*", steps=steps, step_size=0.8)
    sam.backward(spied(module, seen), *batch)
    assert len(seen) == steps + 1
    assert all(intact[:2] == [True, True] for _, intact in seen)
    assert norm(seen[-1][0]) == pytest.approx(0.4, rel=1e-12)


@modest
@given(st.lists(st.sampled_from([0.0, 0.1, 0.4, 1.0]), min_size=4, max_size=4), st.sampled_from([None, 3]))
def test_radius_of_each_group_scales_its_part_of_one_step(radii, m):
    if not any(radii):
        radii = [0.3, *radii[1:]]
    module, batch = mlp(), regression()
    groups = [{"params": [p], "rho": r} for p, r in zip(module.parameters(), radii, strict=True)]
    expected, _ = naive_subset(module, batch, radii, m=m)
    SAM(groups, rho=5.0, m=m).backward(functools.partial(squared, module), *batch)
    assert relative_error(grads(module), expected) < 1e-11


def test_radius_of_groups_multiplies_an_unnormalized_step():
    module, batch = mlp(), regression()
    groups = [
        {"params": module[0].parameters(), "rho": 0.2},
        {"params": module[2].parameters(), "rho": 0.6},
    ]
    expected, _ = naive_subset(module, batch, [0.2, 0.2, 0.6, 0.6], normalized=False)
    SAM(groups, rho=5.0, ascent=Unnormalized()).backward(functools.partial(squared, module), *batch)
    assert relative_error(grads(module), expected) < 1e-12


def test_group_with_radius_zero_keeps_its_bits_and_one_without_has_the_common_radius():
    module, batch, seen = mlp(), regression(), []
    groups = [{"params": list(module[0].parameters()), "rho": 0.0}, {"params": list(module[2].parameters())}]
    expected, _ = naive_subset(module, batch, [0.0, 0.0, 0.4, 0.4])
    SAM(groups, rho=0.4).backward(spied(module, seen), *batch)
    assert seen[1][1] == [True, True, False, False]
    assert norm(seen[1][0]) == pytest.approx(0.4, rel=1e-12)
    assert relative_error(grads(module), expected) < 1e-12


def test_group_with_a_radius_climbs_although_the_common_one_is_zero():
    """Only a schedule at 0 ends SAM for all groups."""
    module, batch, seen = mlp(), regression(), []
    groups = [{"params": list(module[0].parameters()), "rho": 0.4}, {"params": list(module[2].parameters())}]
    expected, _ = naive_subset(module, batch, [0.4, 0.4, 0.0, 0.0])
    SAM(groups, rho=0.0).backward(spied(module, seen), *batch)
    assert seen[1][1] == [False, False, True, True]
    assert relative_error(grads(module), expected) < 1e-12


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_radii_are_those_of_the_parameters_although_the_loss_leaves_one_out(engine):
    """The gradients of |a|^2 / 2 + |b|^2 are a and 2 b; the one left out has the largest radius."""
    a, unused, b = (nn.Parameter(t) for t in tensors(0, (3,), (4,), (2, 2)))
    groups = [{"params": [p], "rho": rho} for p, rho in ((a, 0.4), (unused, 0.8), (b, 0.2))]
    length = norm([a.detach(), 2 * b.detach()])
    expected = [a.detach() * (1 + 0.4 / length), 2 * b.detach() * (1 + 2 * 0.2 / length)]

    def loss(x):
        return 0.5 * a.square().sum() + b.square().sum() + 0.0 * x.sum()

    SAM(groups, rho=0.1, m=2, engine=engine).backward(loss, torch.ones(4, dtype=torch.float64))
    assert unused.grad is None
    assert relative_error([a.grad, b.grad], expected) < 1e-12


def test_groups_with_names_and_a_pattern_meet():
    module, batch = mlp(), regression()
    groups = [
        {"params": list(module[0].named_parameters(prefix="0")), "rho": 0.2},
        {"params": list(module[2].named_parameters(prefix="2"))},
    ]
    expected, _ = naive_subset(module, batch, [0.2, 0.0, 0.8, 0.0])
    SAM(groups, rho=0.8, perturb="*.weight").backward(functools.partial(squared, module), *batch)
    assert relative_error(grads(module), expected) < 1e-12


def test_names_that_an_optimizer_was_given_are_known_to_its_groups():
    module, batch = mlp(), regression()
    base = torch.optim.SGD(module.named_parameters(), lr=0.1)
    expected, _ = naive_subset(module, batch, [0.0, 0.4, 0.0, 0.4])
    SAM(base.param_groups, rho=0.4, perturb="*.bias").backward(functools.partial(squared, module), *batch)
    assert relative_error(grads(module), expected) < 1e-12


def test_frozen_parameters_may_match_and_do_not_move():
    module, batch, seen = mlp(), regression(), []
    module[0].bias.requires_grad_(False)
    SAM(module, rho=0.4, perturb="*.bias").backward(spied(module, seen), *batch)
    assert seen[1][1] == [True, True, True, False]
    assert norm(seen[1][0]) == pytest.approx(0.4, rel=1e-12)
    assert module[0].bias.grad is None


class RMSNorm(nn.Module):
    """A normalization layer that is none of torch's."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.scale * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class TinyRMSNormWithBias(RMSNorm):
    def __init__(self, size):
        super().__init__(size)
        self.shift = nn.Parameter(torch.zeros(size))


class PreNorm(nn.Module):
    """Holds a normalization layer and another module, whose parameters are not its own."""

    def __init__(self, size):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.fn = nn.Linear(size, size)


def test_normalization_layers_are_found_by_the_name_of_their_class():
    module = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
    )
    module.more = nn.ModuleDict({"rms": RMSNorm(4), "own": TinyRMSNormWithBias(4), "pre": PreNorm(4)})
    module.plain = nn.ModuleDict({"last": nn.Linear(4, 2), "bare": nn.LayerNorm(4, elementwise_affine=False)})
    assert norm_layers(module) == [
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "3.weight",
        "3.bias",
        "more.rms.scale",
        "more.own.scale",
        "more.own.shift",
        "more.pre.norm.weight",
        "more.pre.norm.bias",
    ]
    assert norm_layers(nn.LayerNorm(3)) == ["weight", "bias"]


def test_weight_and_spectral_norm_make_no_normalization_layer():
    first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    module = nn.Sequential(first, nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.LayerNorm(4))
    assert norm_layers(module) == ["2.weight", "2.bias"]


def test_sam_on_moves_normalization_layers_only_with_their_norm():
    layers = [nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6), RMSNorm(6), nn.Linear(6, 3)]
    module, batch, seen = seeded(nn.Sequential(*layers)), regression(), []
    names = [name for name, _ in module.named_parameters()]
    radii = [0.4 * (name in ("1.weight", "1.bias", "4.scale")) for name in names]
    expected, _ = naive_subset(module, batch, radii)
    presets.sam_on(module, rho=0.4).backward(spied(module, seen), *batch)
    assert seen[1][1] == [r == 0 for r in radii]
    assert norm(seen[1][0]) == pytest.approx(0.4, rel=1e-12)
    assert relative_error(grads(module), expected) < 1e-12


def test_module_without_normalization_layers_is_refused_by_sam_on():
    """Otherwise nothing would move, and training would silently be that of the optimizer alone."""
    with pytest.raises(ValueError, match=r"must .*, got .*\.$"):
        presets.sam_on(mlp(), rho=0.4)


def test_empty_choice_is_refused():
    with pytest.raises(ValueError, match=r"must .*, got .*\.$"):
        SAM(mlp(), rho=0.4, perturb=[])


def test_pattern_without_a_match_is_refused_with_the_names_there_are():
    message = (
        r"^perturb must name or match parameters \(0\.weight, 0\.bias, 2\.weight, 2\.bias\), got 'norm\*'\.$"
    )
    with pytest.raises(ValueError, match=message):
        SAM(mlp(), rho=0.4, perturb=["*.bias", "norm*"])
    deep = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)))
    with pytest.raises(ValueError, match=r"\(0\.weight, .*, 3\.bias, \.\.\.\), got 'x'\.$"):
        SAM(deep, rho=0.4, perturb="x")


def test_pattern_without_names_is_refused():
    message = (
        r"^perturb needs names: params must be a module or named parameters, got parameters without names\.$"
    )
    module = mlp()
    half = [{"params": module[0].named_parameters()}, {"params": module[2].parameters()}]
    for params in (module.parameters(), half):
        with pytest.raises(ValueError, match=message):
            SAM(params, rho=0.4, perturb="*")


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_radius_of_a_group_that_is_none_is_refused(bad):
    a, b = (nn.Parameter(t) for t in tensors(0, (3,), (2,)))
    with pytest.raises(ValueError, match=r"^rho must be non-negative and finite, got .*\.$"):
        SAM([{"params": [a], "rho": bad}, {"params": [b]}], rho=0.1)


def test_repeated_parameters_have_their_first_name_and_radius():
    a, b = (nn.Parameter(t) for t in tensors(0, (3,), (2,)))
    chosen = Chosen([{"params": [("a", a)], "rho": 0.1}, {"params": [("again", a), ("b", b)]}])
    assert [t is p for t, p in zip(chosen.tensors, (a, b), strict=True)] == [True, True]
    assert chosen.names == ["a", "b"]
    assert chosen.radii == [0.1, None]
