"""The same random draws in every pass of a group, and none lost or gained afterwards."""

import functools
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowland import SAM, sam_gradient
from lowland.sam import magnitude_only

from .naive import added, mlp, naive_sam, norm, regression, relative_error, rows, squared

# These tests watch the passes of each group by itself.
SAM = functools.partial(SAM, engine="loop")
sam_gradient = functools.partial(sam_gradient, engine="loop")

OPTIONS = [
    {},
    {"steps": 3},
    {"ascent_batch": regression(5)},
    {"ascent_batch": regression(5), "combine": magnitude_only},
]


class Spied(nn.Module):
    """Dropout that remembers its masks."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def forward(self, x):
        mask = F.dropout(torch.ones_like(x), 0.5, self.training)
        self.masks.append(mask)
        return mask * x


def spied_mlp():
    module = mlp()
    return nn.Sequential(module[0], Spied(), module[1], module[2])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("m", [1, 3, None])
def test_all_passes_of_a_group_see_one_mask_and_groups_see_others(options, m):
    module, batch = spied_mlp(), regression()
    torch.manual_seed(0)
    sam_gradient(
        functools.partial(squared, module), list(module.parameters()), batch, rho=0.4, m=m, **options
    )
    passes = 2 + options.get("steps", 1) - 1 + ("ascent_batch" in options)
    groups = [module[1].masks[i : i + passes] for i in range(0, len(module[1].masks), passes)]
    assert len(groups) == (1 if m is None else -(-7 // m))
    assert all(torch.equal(mask, group[0]) for group in groups for mask in group)
    drawn = torch.cat([group[0] for group in groups])
    torch.manual_seed(0)
    plain = torch.cat([F.dropout(torch.ones_like(group[0]), 0.5) for group in groups])
    assert torch.equal(drawn, plain), "the masks are those that a plain pass over the groups draws"
    assert len(drawn.unique(dim=0)) > 1


@pytest.mark.parametrize("options", [*OPTIONS, {"rho": 0.0}, {"bn_stats": "frozen"}])
def test_generator_stands_afterwards_where_one_pass_leaves_it(options):
    module, batch = spied_mlp(), regression()
    torch.manual_seed(0)
    for start in (0, 3, 6):
        squared(module, *rows(batch, start, start + 3))
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    options = {"rho": 0.4, "m": 3, **options}
    sam_gradient(functools.partial(squared, module), list(module.parameters()), batch, **options)
    assert torch.equal(torch.get_rng_state(), expected)


def test_generator_stands_where_the_first_pass_left_it_although_later_ones_draw_more():
    module, batch, calls = mlp(), regression(), []

    def loss(x, y):
        calls.append(None)
        torch.rand(len(calls))
        return squared(module, x, y)

    torch.manual_seed(0)
    torch.rand(1)
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    sam_gradient(loss, list(module.parameters()), batch, rho=0.4, steps=2)
    assert torch.equal(torch.get_rng_state(), expected)


def test_gradient_with_dropout_is_that_of_a_network_with_the_mask_fixed():
    module, batch = spied_mlp(), regression()
    torch.manual_seed(0)
    found = sam_gradient(
        functools.partial(squared, module), list(module.parameters()), batch, rho=0.4, m=7
    ).gradients
    mask = module[1].masks[0]
    fixed = mlp()

    def masked(net, x, y):
        return (net[2](net[1](mask * net[0](x))) - y).square().mean()

    assert relative_error(found, naive_sam(fixed, masked, batch, rho=0.4).gradients) < 1e-12


def test_noise_drawn_by_the_loss_itself_is_replayed():
    module, (x, y), draws = mlp(), regression(), []

    def noisy(x, y):
        draws.append(torch.randn(x.shape, dtype=x.dtype))
        return squared(module, x + 0.1 * draws[-1], y)

    sam_gradient(noisy, list(module.parameters()), (x, y), rho=0.4, steps=2)
    assert len(draws) == 3
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_group_that_climbs_nowhere_leaves_the_generator_like_one_pass():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))

    def loss(x):
        return (a.square().sum() + b.square().sum()) * torch.rand(()) + 0.0 * x.sum()

    torch.manual_seed(0)
    torch.rand(())
    torch.rand(())
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    sam_gradient(loss, [a, b], (torch.zeros(4),), rho=0.1, m=2)
    assert torch.equal(torch.get_rng_state(), expected)


def test_training_with_dropout_and_radius_zero_is_training_without_sam():
    one, other = (nn.Sequential(mlp(), nn.Dropout(0.3)) for _ in range(2))
    batch = regression()
    sam = SAM(one, rho=0.0)
    for module, backward in ((one, True), (other, False)):
        torch.manual_seed(7)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = functools.partial(squared, module)
            if backward:
                sam.backward(loss, *batch)
            else:
                loss(*batch).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_another_mask_in_the_second_pass_would_be_another_gradient():
    """The guard of this file: the masks do matter for the comparison above."""
    module, batch = spied_mlp(), regression()
    params = list(module.parameters())
    torch.manual_seed(0)
    found = sam_gradient(functools.partial(squared, module), params, batch, rho=0.4).gradients
    torch.manual_seed(0)
    g = torch.autograd.grad(squared(module, *batch), params)
    moved = deepcopy(module)
    with torch.no_grad():
        for p, value in zip(moved.parameters(), added(params, [0.4 * t / norm(g) for t in g]), strict=True):
            p.copy_(value)
    redrawn = torch.autograd.grad(squared(moved, *batch), list(moved.parameters()))
    assert relative_error(list(redrawn), found) > 1e-2
