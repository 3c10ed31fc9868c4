"""Randomness: groups draw their own, and the next call draws anew, or it is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import sam_gradient

from ...naive import bits, seeded
from ..models import trained
from .making import vectors
from .outcomes import Unbatchable

DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout1d": lambda x: F.dropout1d(x[:, :, None], 0.5)[:, :, 0],
    "dropout2d": lambda x: F.dropout2d(x[:, :, None, None], 0.5)[:, :, 0, 0],
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "alpha dropout of channels": lambda x: F.feature_alpha_dropout(x[:, :, None], 0.5, training=True)[
        :, :, 0
    ],
    "rand_like": torch.rand_like,
    "rand": lambda x: torch.rand(x.shape, dtype=x.dtype),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.5),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "bernoulli": lambda x: torch.bernoulli(0.5 * x),
    "stochastic depth": lambda x: x * torch.rand((), dtype=x.dtype).round(),
    "permutation": lambda x: x * torch.randperm(x.shape[1]),
}
"""What groups draw for themselves."""

REFUSED = {
    "normal_ of an empty tensor": (
        lambda x: torch.empty(x.shape, dtype=x.dtype).normal_(),
        "normal_, which writes to a tensor that all groups share: ",
    ),
    "rand of a given generator": (
        lambda x: torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0)),
        "rand with a generator of its own: ",
    ),
}
"""What would be the same for all of them, and what the user is told of it."""


def drawn(draw, examples):
    """What is drawn in a pass at the weights, of all examples."""
    module = seeded(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))

    def loss(x):
        mask = draw(torch.ones_like(x))
        return (module(x) * mask[:, :3]).square().mean() + 0.0, mask

    x = vectors(examples=examples)
    return sam_gradient(
        loss, trained(module), (x,), rho=0.1, m=2, module=module, engine="batched", max_memory=2**40
    ).aux


@pytest.mark.parametrize("name", DRAWS)
def test_groups_draw_their_own_and_the_next_call_draws_anew(name):
    torch.manual_seed(3)
    masks = [drawn(DRAWS[name], examples=40) for _ in range(2)]
    assert masks[0].shape == (40, 4)
    groups = masks[0].view(20, 2, 4)
    assert len({bits(g) for g in groups}) > 1, "all groups drew the same"
    assert not torch.equal(*masks), "the next call drew the same"


@pytest.mark.parametrize("name", REFUSED)
def test_draws_of_which_one_would_serve_all_groups_are_refused_by_name(name):
    draw, said = REFUSED[name]
    with pytest.raises(Unbatchable, match=said):
        drawn(draw, examples=6)


@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d"])
def test_dropout_drops_half_of_everything_and_scales_the_rest(name):
    torch.manual_seed(3)
    mask = drawn(DRAWS[name], examples=400)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert abs(mask.mean() - 1.0) < 0.1
    assert (mask.std(1) > 0).any()
