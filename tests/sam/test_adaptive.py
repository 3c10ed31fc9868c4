"""ASAM: steps in a ball that is measured in units of the weights, against its formula written out."""

import functools
from fnmatch import fnmatch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowland import SAM
from lowland.sam import Adaptive

from .naive import (
    added,
    bn_conv,
    identity,
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

modest = settings(max_examples=10, deadline=None)


def scales_of(module, *, eta, by, scaled):
    """T: |w| + eta, or a filter's norm + eta; 1 where the name does not match."""
    scales = []
    for name, p in module.named_parameters():
        w = p.detach().clone()
        if not fnmatch(name, scaled):
            scales.append(torch.ones_like(w))
        elif by == "element" or w.dim() == 1:
            scales.append(w.abs() + eta)
        else:
            filters = [torch.full_like(f, f.square().sum().sqrt().item() + eta) for f in w]
            scales.append(torch.stack(filters))
    return scales


def naive_asam(module, batch, *, rho, scales, m=None, steps=1, step_size=1.0):
    """Gradient and each group's perturbation: rho T^2 g / |T g| per step, back into |e / T| <= rho."""
    w = [p.detach().clone() for p in module.parameters()]
    total = num_examples(batch)
    m = m or total
    gradient, perturbations = [torch.zeros_like(p) for p in w], []
    for start in range(0, total, m):
        group = rows(batch, start, start + m)
        e = [torch.zeros_like(p) for p in w]
        for _ in range(steps):
            _, g = value_and_gradient(module, squared, group, added(w, e))
            length = norm([t * a for t, a in zip(scales, g, strict=True)])
            step = [t * t * a * (rho * step_size / length) for t, a in zip(scales, g, strict=True)]
            e = added(e, step)
            length = scaled_norm(e, scales)
            e = [t * min(1.0, rho / length) for t in e]
        _, g = value_and_gradient(module, squared, group, added(w, e))
        gradient = added(gradient, g, num_examples(group) / total)
        perturbations.append(e)
    return gradient, perturbations


def scaled_norm(e, scales):
    """|e / T|, where T = 0 means that nothing moved."""
    return norm([torch.where(s == 0, 0.0 * t, t / s) for t, s in zip(e, scales, strict=True)])


def perturbations(module, batch, **options):
    """What the weights moved by in each pass of one call."""
    start, seen = [p.detach().clone() for p in module.parameters()], []

    def loss(*group):
        seen.append([p.detach() - s for p, s in zip(module.parameters(), start, strict=True)])
        return squared(module, *group)

    module.zero_grad()
    SAM(module, **options).backward(loss, *batch)
    return seen


def small(model):
    """A model and its batch."""
    if model is mlp:
        return mlp(), regression()
    return bn_conv(), tuple(tensors(2, (7, 2, 5, 5), (7, 2, 2, 2)))


@pytest.mark.parametrize("model", [mlp, bn_conv])
@pytest.mark.parametrize("by", ["element", "filter"])
@pytest.mark.parametrize(("eta", "scaled"), [(0.01, "*weight*"), (0.3, "*"), (0.0, "0.*")])
def test_gradient_and_perturbation_are_those_of_the_formula(model, by, eta, scaled):
    module, batch = small(model)
    scales = scales_of(module, eta=eta, by=by, scaled=scaled)
    expected, (e,) = naive_asam(module, batch, rho=0.6, scales=scales)
    ascent = Adaptive(eta=eta, by=by, scaled=scaled)
    found = perturbations(module, batch, rho=0.6, ascent=ascent)
    assert relative_error(found[1], e) < 1e-13
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12
    assert scaled_norm(e, scales) == pytest.approx(0.6, rel=1e-12)


@pytest.mark.parametrize("m", [1, 3])
def test_every_group_climbs_in_its_own_direction(m):
    module, batch = mlp(), regression()
    scales = scales_of(module, eta=0.01, by="element", scaled="*weight*")
    expected, _ = naive_asam(module, batch, rho=0.6, scales=scales, m=m)
    SAM(module, rho=0.6, m=m, ascent=Adaptive()).backward(functools.partial(squared, module), *batch)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


@pytest.mark.parametrize("by", ["element", "filter"])
@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("step_size", [0.3, 0.8])
def test_several_steps_are_projected_onto_the_ascents_own_ball(by, steps, step_size):
    module, batch = mlp(), regression()
    scales = scales_of(module, eta=0.05, by=by, scaled="*weight*")
    options = {"rho": 0.6, "steps": steps, "step_size": step_size}
    expected, (e,) = naive_asam(module, batch, scales=scales, **options)
    found = perturbations(module, batch, ascent=Adaptive(eta=0.05, by=by), **options)
    assert len(found) == steps + 1
    assert relative_error(found[-1], e) < 1e-12
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12
    if steps * step_size > 1.5:
        assert scaled_norm(found[-1], scales) == pytest.approx(0.6, rel=1e-12)
        assert abs(norm(found[-1]) - 0.6) > 1e-2, "not the l2 ball"


def test_first_step_longer_than_the_radius_is_projected():
    module, batch = mlp(), regression()
    one = perturbations(module, batch, rho=0.6, ascent=Adaptive())[1]
    two = perturbations(module, batch, rho=0.6, ascent=Adaptive(), step_size=2.0)[1]
    assert relative_error(two, one) < 1e-14


@modest
@given(st.integers(0, 99), st.sampled_from(["element", "filter"]), st.floats(0.05, 20.0))
def test_rescaling_weights_that_cancel_changes_neither_loss_nor_perturbed_loss(seed, by, factor):
    batch = tuple(tensors(seed, (5, 4), (5, 3)))

    def diagnostics(c):
        module = seeded(nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)), seed)
        with torch.no_grad():
            module[0].weight.mul_(c)
            module[1].weight.div_(c)
        sam = SAM(module, rho=0.3, ascent=Adaptive(eta=0.0, by=by, scaled="*"), diagnostics=True)
        sam.backward(functools.partial(squared, module), *batch)
        return sam.last_diagnostics

    one, other = diagnostics(1.0), diagnostics(factor)
    assert other.loss.item() == pytest.approx(one.loss.item(), rel=1e-10)
    assert other.perturbed_loss.item() == pytest.approx(one.perturbed_loss.item(), rel=1e-10)
    assert one.perturbed_loss > one.loss


@modest
@given(st.integers(0, 99), st.floats(1e-3, 1e3))
def test_scale_of_the_loss_does_not_change_the_perturbation(seed, factor):
    module, batch = mlp(seed), regression(seed + 1)
    start = [p.detach().clone() for p in module.parameters()]

    def perturbation(c):
        seen = []

        def loss(x, y):
            seen.append([p.detach() - s for p, s in zip(module.parameters(), start, strict=True)])
            return c * squared(module, x, y)

        SAM(module, rho=0.5, ascent=Adaptive()).backward(loss, *batch)
        return seen[1]

    assert relative_error(perturbation(factor), perturbation(1.0)) < 1e-12


def test_biases_move_as_in_sam_and_weights_by_their_size():
    """By hand: w = (2, 0), b = 1, gradient (3, 1) and 4, eta = 0.5: T g = (7.5, 0.5) and 4."""
    layer = nn.Linear(2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 0.0]]))
        layer.bias.fill_(1.0)
    slopes, seen = torch.tensor([[3.0, 1.0]]).double(), []

    def loss(x):
        seen.append([*layer.weight.detach().flatten().tolist(), layer.bias.item()])
        return (slopes * layer.weight).sum() + 4.0 * layer.bias.sum() + 0.0 * x.sum()

    SAM(layer, rho=0.1, ascent=Adaptive(eta=0.5)).backward(loss, torch.zeros(2))
    length = (7.5**2 + 0.5**2 + 4.0**2) ** 0.5
    moved = [0.1 * 2.5 * 7.5 / length, 0.1 * 0.5 * 0.5 / length, 0.1 * 4.0 / length]
    assert seen[1] == pytest.approx([2.0 + moved[0], moved[1], 1.0 + moved[2]], rel=1e-13)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("by", ["element", "filter"])
def test_weights_at_zero_stay_there_without_eta(steps, by):
    module, batch = mlp(), regression()
    with torch.no_grad():
        module[0].weight[2].zero_()
        module[2].weight[0, 1] = 0.0
    scales = scales_of(module, eta=0.0, by=by, scaled="*weight*")
    options = {"rho": 0.6, "steps": steps, "step_size": 0.7}
    expected, (by_hand,) = naive_asam(module, batch, scales=scales, **options)
    e = perturbations(module, batch, ascent=Adaptive(eta=0.0, by=by), **options)[-1]
    assert not e[0][2].any()
    assert by == "filter" or e[2][0, 1] == 0
    assert relative_error(e, by_hand) < 1e-12
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


def test_weights_at_zero_move_with_eta():
    module, batch = mlp(), regression()
    with torch.no_grad():
        module[0].weight[2].zero_()
    e = perturbations(module, batch, rho=0.6, ascent=Adaptive(eta=0.1))[1]
    assert e[0][2].abs().min() > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_all_weights_at_zero_without_eta_climb_nowhere(steps):
    a, b = (nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (3, 2))
    before, calls = identity([a, b]), []

    def loss(x):
        calls.append(identity([a, b]) == before)
        return (2 * a.sum() - b.sum()) * x.mean()

    sam = SAM([a, b], rho=0.5, ascent=Adaptive(eta=0.0, scaled="*"), steps=steps, diagnostics=True)
    sam.backward(loss, torch.ones(4))
    assert a.grad.tolist() == [2.0] * 3
    assert b.grad.tolist() == [-1.0] * 2
    assert calls == [True]
    assert sam.last_diagnostics.climbed.tolist() == [False]


def test_names_are_not_needed_where_all_is_scaled():
    module, batch = mlp(), regression()
    scales = scales_of(module, eta=0.02, by="element", scaled="*")
    expected, _ = naive_asam(module, batch, rho=0.6, scales=scales)
    ascent = Adaptive(eta=0.02, scaled="*")
    SAM(module.parameters(), rho=0.6, ascent=ascent).backward(functools.partial(squared, module), *batch)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


def test_parameters_without_names_are_refused_where_names_decide():
    module, batch = mlp(), regression()
    before = identity(module)
    message = (
        r"^Adaptive\(scaled='\*weight\*'\) needs names: params must be a module or named parameters, "
        r'or scaled="\*", got parameters without names\.$'
    )
    with pytest.raises(ValueError, match=message):
        SAM(module.parameters(), rho=0.6, ascent=Adaptive()).backward(
            functools.partial(squared, module), *batch
        )
    assert identity(module) == before


@pytest.mark.usefixtures("untyped")
def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^eta must be non-negative, got -0\.1\.$"):
        Adaptive(eta=-0.1)
    with pytest.raises(ValueError, match=r"^eta must be non-negative, got nan\.$"):
        Adaptive(eta=float("nan"))
    with pytest.raises(ValueError, match=r"^by must be one of \('element', 'filter'\), got 'layer'\.$"):
        Adaptive(by="layer")
