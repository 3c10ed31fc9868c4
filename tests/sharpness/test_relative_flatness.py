"""Relative flatness against closed forms, and what it promises not to feel."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.errors import InputError
from lowland.sam import MicroBatches
from lowland.sharpness import relative_flatness

DOUBLE = torch.float64


def network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    return module, torch.randn(7, 3, dtype=DOUBLE), torch.arange(7) % 3


def loss_of(module):
    return lambda x, y: F.cross_entropy(module(x), y, reduction="none")


def rescaled(module, by=3.0):
    """The same function by other weights."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        other[0].weight.mul_(by)
        other[2].weight.div_(by)
    return other


def test_relative_flatness_of_least_squares_is_the_weights_square_times_the_inputs() -> None:
    torch.manual_seed(1)
    W, x = torch.randn(2, 5, dtype=DOUBLE, requires_grad=True), torch.randn(9, 5, dtype=DOUBLE)

    def loss(x):
        return 0.5 * (x @ W.T).square().sum(1)

    wanted = (W.square().sum() * x.square().sum(1).mean()).item()
    batch = MicroBatches([(x[:6],), (x[6:],)])
    found = [relative_flatness(loss, W, batch, products=20, seed=s) for s in range(40)]
    values = np.array([f.value for f in found])
    assert abs(values.mean() - wanted) < 4 * values.std(ddof=1) / 40**0.5 < 0.2 * wanted
    claimed = np.sqrt(np.mean([f.stderr**2 for f in found]))
    assert 0.6 < values.std(ddof=1) / claimed < 1.6
    assert found[0].examples == 9


def test_relative_flatness_is_its_definition_on_the_dense_hessian() -> None:
    """The rows of a layer meet in the Hessian of the cross entropy."""
    module, x, y = network()
    W = module[2].weight
    hidden = module[:2](x).detach()
    H = torch.autograd.functional.hessian(lambda w: F.cross_entropy(hidden @ w.T, y), W.detach())
    wanted = torch.einsum("sk,tk,sjtj->", W, W, H).item()
    found = [relative_flatness(loss_of(module), W, (x, y), products=20, seed=s).value for s in range(60)]
    assert abs(np.mean(found) - wanted) < 4 * np.std(found, ddof=1) / 60**0.5 < 0.3 * abs(wanted)


def test_relative_flatness_does_not_feel_a_rescaling_that_leaves_the_function_as_it_is() -> None:
    module, x, y = network()
    other = rescaled(module)
    torch.testing.assert_close(module(x), other(x))
    for layer in (0, 2):
        a, b = (relative_flatness(loss_of(m), m[layer].weight, (x, y)).value for m in (module, other))
        assert a == pytest.approx(b, rel=1e-9)


def test_what_is_no_layer_is_refused() -> None:
    module, x, y = network()
    bias = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(InputError, match=r"weight must have two dimensions or more, got shape \(3,\)"):
        relative_flatness(loss_of(module), bias, (x, y))
    with pytest.raises(InputError, match="products must be at least 2, got 1"):
        relative_flatness(loss_of(module), module[0].weight, (x, y), products=1)
