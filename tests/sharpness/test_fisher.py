"""Fisher matrices against gradients of single examples, and against their mean over all targets."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.errors import InputError
from lowland.sam import MicroBatches
from lowland.sharpness import (
    GaussNewton,
    empirical_fisher,
    fisher_rao_norm,
    hessian_eigenvalues,
    hessian_trace,
    monte_carlo_fisher,
    spectral_density,
)

DOUBLE = torch.float64


def network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(7, 3, dtype=DOUBLE), torch.arange(7) % 3
    return module, list(module.parameters()), x, y


def outer_products(losses, params):
    """The mean of g g^T over the examples, each differentiated by itself."""
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(one, params)]) for one in losses()]
    G = torch.stack(rows)
    return (G.T @ G / len(G)).numpy()


@pytest.mark.parametrize("ragged", [False, True])
def test_the_empirical_fisher_is_the_mean_of_the_gradients_outer_products(ragged) -> None:
    module, params, x, y = network()

    def loss(x, y):
        return F.cross_entropy(module(x), y, reduction="none"), {"error": module(x).argmax(1) != y}

    dense = outer_products(lambda: (loss(x[i : i + 1], y[i : i + 1])[0] for i in range(7)), params)
    wanted = np.linalg.eigvalsh(dense)[::-1]
    batch = MicroBatches([(x[:4], y[:4]), (x[4:], y[4:])]) if ragged else (x, y)
    matrix = empirical_fisher(loss)
    np.testing.assert_allclose(hessian_eigenvalues(matrix, params, batch, k=3).values, wanted[:3], rtol=1e-9)
    assert hessian_trace(matrix, params, batch, products=200).value == pytest.approx(wanted.sum())
    assert spectral_density(matrix, params, batch, steps=20, runs=3).nodes.min() > -1e-9


@pytest.mark.parametrize(
    ("likelihood", "criterion"),
    [
        ("categorical", lambda f, x: F.cross_entropy(f, torch.zeros(len(x), dtype=torch.long))),
        ("normal", lambda f, *_: 0.5 * f.square().sum(1)),
    ],
)
def test_drawn_targets_give_the_gauss_newton_matrix_on_average(likelihood, criterion) -> None:
    """Which does not depend on the targets: the criterion's are any."""
    module, params, x, _ = network()
    wanted = hessian_trace(GaussNewton(module, criterion), params, (x,), products=200).value
    found = np.array(
        [
            hessian_trace(
                monte_carlo_fisher(module, likelihood=likelihood, samples=50, seed=seed),
                params,
                (x,),
                products=200,
            ).value
            for seed in range(20)
        ]
    )
    assert len(set(found)) == 20
    assert abs(found.mean() - wanted) < 4 * found.std(ddof=1) / len(found) ** 0.5 < 0.1 * wanted


def test_the_draws_are_the_same_in_every_product_and_others_stay_as_they_were() -> None:
    module, params, x, _ = network()
    state = torch.get_rng_state()
    matrix = monte_carlo_fisher(module, samples=3)
    once, again = (hessian_eigenvalues(matrix, params, (x,), k=4) for _ in range(2))
    np.testing.assert_array_equal(once.values, again.values)
    assert once.residuals.max() < 1e-6 * once.value
    assert torch.equal(torch.get_rng_state(), state)


def homogeneous(by=1.0):
    """A network of two layers; its function is the same for every factor between them."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    with torch.no_grad():
        module[0].weight.mul_(by)
        module[2].weight.div_(by)
    return module, dict(module.named_parameters()), torch.randn(7, 3, dtype=DOUBLE), torch.arange(7) % 3


def losses_of(module):
    return lambda x, y: F.cross_entropy(module(x), y, reduction="none")


def test_the_fisher_rao_norm_of_a_homogeneous_network_is_that_of_its_outputs() -> None:
    """Liang et al., 2019: gradient times weights is the outputs' gradient times these, and the depth."""
    module, params, x, y = homogeneous()
    f = module(x)
    (slope,) = torch.autograd.grad(F.cross_entropy(f, y, reduction="sum"), f)
    wanted = 2.0 * (slope * f).sum(1).square().mean().sqrt().item()
    found = fisher_rao_norm(empirical_fisher(losses_of(module)), params, (x, y))
    assert found.value == pytest.approx(wanted, rel=1e-9)
    # over the network's own predictions: the spread of the logits, times the depth
    p = f.softmax(1)
    spread = (p * f.square()).sum(1) - (p * f).sum(1).square()
    own = GaussNewton(lambda x, _: module(x), lambda f, _, y: F.cross_entropy(f, y, reduction="none"))
    found = fisher_rao_norm(own, params, MicroBatches([(x[:5], y[:5]), (x[5:], y[5:])]))
    assert found.value == pytest.approx(2.0 * spread.mean().sqrt().item(), rel=1e-9)
    assert found.row()["measure"] == "Fisher-Rao norm"


def test_the_fisher_rao_norm_does_not_feel_a_rescaling_that_leaves_the_function_as_it_is() -> None:
    norms = []
    for by in (1.0, 3.0):
        module, params, x, y = homogeneous(by)
        norms.append(fisher_rao_norm(empirical_fisher(losses_of(module)), params, (x, y)).value)
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


@pytest.mark.usefixtures("untyped")
def test_what_is_not_one_value_or_row_per_example_is_refused() -> None:
    module, params, x, y = network()
    with pytest.raises(InputError, match=r"must return one value per example, shape \(7,\), got \(\)"):
        hessian_trace(empirical_fisher(lambda x, y: F.cross_entropy(module(x), y)), params, (x, y))
    with pytest.raises(InputError, match=r"must have the shape \(7, classes or values\), got \(7,\)"):
        hessian_trace(monte_carlo_fisher(lambda x: module(x)[:, 0]), params, (x,))
    with pytest.raises(InputError, match="samples must be a positive whole number, got 0"):
        monte_carlo_fisher(module, samples=0)
    with pytest.raises(InputError, match="likelihood must be one of categorical, normal, got 'x'"):
        monte_carlo_fisher(module, likelihood="x")
