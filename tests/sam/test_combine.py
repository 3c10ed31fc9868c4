"""What is returned from the gradients at w and at w + e."""

import functools

import pytest
import torch

from lowland import SAM, sam_gradient
from lowland.sam import Combine, magnitude_only

from .naive import mlp, naive_sam, norm, regression, relative_error, squared, tensors


def combined(module, batch, combine, **options):
    params = list(module.parameters())
    return sam_gradient(functools.partial(squared, module), params, batch, combine=combine, **options)


@pytest.mark.parametrize("m", [1, 3, None])
@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_magnitude_only_has_the_direction_at_w_and_the_norm_at_the_perturbed_weights(m, l2):
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=0.4, m=m, l2=l2)
    found = combined(module, batch, magnitude_only, rho=0.4, m=m, l2=l2).gradients
    factor = norm(expected.gradients) / norm(expected.at_weights)
    assert relative_error(found, [factor * g for g in expected.at_weights]) < 1e-12
    assert abs(factor - 1) > 1e-3


@pytest.mark.parametrize("m", [1, 3, None])
@pytest.mark.parametrize("another", [False, True])
def test_rule_sees_both_gradients_averaged_over_groups(m, another):
    module, batch = mlp(), regression()
    options = {"rho": 0.4, "m": m, "ascent_batch": regression(5) if another else None}
    expected = naive_sam(module, squared, batch, **options)
    found = combined(
        module, batch, lambda g, p: [3 * a - 2 * b for a, b in zip(g, p, strict=True)], **options
    )
    weighted = [3 * a - 2 * b for a, b in zip(expected.at_weights, expected.gradients, strict=True)]
    assert relative_error(found.gradients, weighted) < 1e-11


def test_rule_that_returns_the_perturbed_gradient_is_sam_exactly():
    module, batch = mlp(), regression()
    found = combined(module, batch, lambda _, p: list(p), rho=0.4, m=3).gradients
    plain = combined(module, batch, None, rho=0.4, m=3).gradients
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_rule_keeps_the_scale():
    module, batch = mlp(), regression()
    once = combined(module, batch, magnitude_only, rho=0.4, m=3).gradients
    scaled = combined(module, batch, magnitude_only, rho=0.4, m=3, scale=16.0).gradients
    assert relative_error([g / 16.0 for g in scaled], once) < 1e-14


def test_zero_gradient_at_w_stays_zero_in_magnitude_only():
    zeros = [torch.zeros(2), torch.zeros(3)]
    found = magnitude_only(zeros, [torch.ones(2), torch.ones(3)])
    assert all(torch.equal(g, z) for g, z in zip(found, zeros, strict=True))


def test_magnitude_only_uses_one_norm_for_all_tensors():
    found = magnitude_only(
        [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([0.0]), torch.tensor([10.0])]
    )
    assert [g.item() for g in found] == pytest.approx([6.0, 8.0])


def test_magnitude_only_keeps_the_dtype():
    half = [torch.ones(2, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)]
    assert {g.dtype for g in magnitude_only(half, half)} == {torch.bfloat16}


def test_rule_of_the_shell_is_used():
    module, batch = mlp(), regression()
    SAM(module, rho=0.4, m=3, combine=magnitude_only).backward(functools.partial(squared, module), *batch)
    expected = combined(module, batch, magnitude_only, rho=0.4, m=3).gradients
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), expected, strict=True))


def test_rule_is_a_function_of_two_gradients():
    assert isinstance(magnitude_only, Combine)


def test_parameter_that_only_the_unperturbed_pass_used_keeps_its_combined_gradient():
    a, b = (torch.nn.Parameter(t) for t in tensors(3, (2,), (2,)))
    calls = []

    def layer_drop(x):
        calls.append(None)
        used = a if len(calls) == 2 else torch.cat([a, b])
        return (used**2).sum() + 0.0 * x.sum()

    found = sam_gradient(
        layer_drop, [a, b], (torch.zeros(2),), rho=0.5, combine=lambda g, _: list(g)
    ).gradients
    assert found[1] is not None
    assert torch.equal(found[1], 2 * b.detach())


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("start", [0.0, 1.0], ids=["zero gradient", "some gradient"])
def test_rule_is_called_if_some_group_moves_whatever_the_engine(engine, start):
    w = torch.nn.Parameter(torch.full((3,), start, dtype=torch.float64))
    x, calls = torch.randn(8, 3, dtype=torch.float64), []

    def rule(_, perturbed):
        calls.append(None)
        return [p + 1.0 for p in perturbed]

    def loss(x):
        return (x @ w).square().mean()

    options = {"rho": 0.1, "m": 2, "combine": rule, "engine": engine, "max_memory": 2**40}
    found = sam_gradient(loss, [w], (x,), **options).gradients[0]
    assert len(calls) == (start != 0.0)
    assert bool(found.any()) == (start != 0.0)
