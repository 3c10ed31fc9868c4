"""Ranks, active ReLUs, nearest neighbours and normalized logits against direct computations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.errors import InputError
from lowland.sharpness import ActiveReLUs, feature_rank, features_at, knn_error, normalized_logits


@pytest.mark.parametrize("shape", [(30, 80), (200, 20)])
@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
def test_the_rank_counts_components_of_a_known_spectrum(shape, variance) -> None:
    rng = np.random.default_rng(0)
    n, d = shape
    values = np.array([10.0, 5.0, 5.0, 1.0, 0.3, 0.1])
    left = np.linalg.qr(rng.standard_normal((n, 7)) - 0)[0]
    left = np.linalg.qr(left - left.mean(0))[0][:, :6]  # orthonormal and centred
    right = np.linalg.qr(rng.standard_normal((d, 6)))[0]
    features = left * values @ right.T + rng.standard_normal(d)  # the mean does not count
    shares = np.cumsum(values**2) / (values**2).sum()
    wanted = 6 if variance == 1.0 else int(np.searchsorted(shares, variance) + 1)
    found = feature_rank(torch.from_numpy(features).view(n, 2, -1), variance=variance)
    assert found == wanted


def test_the_rank_of_equal_features_is_zero_and_wrong_shares_are_refused() -> None:
    assert feature_rank(torch.ones(5, 3)) == 0
    with pytest.raises(InputError, match=r"variance must be in \(0, 1\], got 0.0."):
        feature_rank(torch.eye(3), variance=0.0)
    with pytest.raises(InputError, match="at least two examples, got 1"):
        feature_rank(torch.ones(1, 3))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU(inplace=True)

    def forward(self, x):
        return F.relu(self.second(self.act(self.first(x))))


def test_active_relus_are_counted_in_modules_and_functions() -> None:
    torch.manual_seed(0)
    module, x = Mixed(), torch.randn(50, 3)
    with torch.no_grad():
        hidden = module.first(x)
        out = module.second(hidden.clamp(min=0))
    positive = int((hidden > 0).sum() + (out > 0).sum())
    with ActiveReLUs() as counted:
        for part in x.split(20):
            module(part)
    assert counted.positive == positive
    assert counted.outputs == 50 * 6
    assert counted.fraction == positive / 300
    module(x)
    assert counted.outputs == 300
    assert math.isnan(ActiveReLUs().fraction)


def test_features_of_a_layer_are_its_outputs_and_no_hook_is_left() -> None:
    torch.manual_seed(0)
    module, x = Mixed(), torch.randn(7, 3)
    found = features_at(module, "second", x.split(3))
    torch.testing.assert_close(found, module.second(module.first(x).relu()).detach())
    assert not module.second._forward_hooks
    with pytest.raises(InputError, match="name of one of the network's, got 'secnd'; nearest: second"):
        features_at(module, "secnd", [x])
    with pytest.raises(RuntimeError):
        features_at(module, "second", [torch.randn(2, 9)])
    assert not module.second._forward_hooks
    module.extra = nn.Linear(1, 1)
    with pytest.raises(InputError, match="one that runs, got 'extra'"):
        features_at(module, "extra", [x])


@pytest.mark.parametrize("k", [1, 3, 10])
def test_neighbours_vote_as_in_a_loop(k) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((60, 5)), rng.standard_normal((33, 5))
    labels, wanted = rng.integers(0, 4, 60), rng.integers(0, 4, 33)
    wrong = 0
    for q, y in zip(test, wanted, strict=True):
        near = np.argsort(((train - q) ** 2).sum(1))[:k]
        wrong += np.bincount(labels[near], minlength=4).argmax() != y
    pairs = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((train, labels), (test, wanted))]
    assert knn_error(*pairs, k=k) == wrong / 33
    assert knn_error(pairs[0], pairs[0], k=1) == 0.0


def test_wrong_numbers_of_neighbours_are_refused() -> None:
    some = (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="k must be from 1 to the 3 training examples, got 4"):
        knn_error(some, some, k=4)
    with pytest.raises(InputError, match="at least one example, got none"):
        knn_error(some, (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), k=1)


def test_normalized_logits_do_not_feel_scale_or_shift() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64)
    found = normalized_logits(logits)
    torch.testing.assert_close(normalized_logits(7 * logits + 3), found)
    torch.testing.assert_close(found.mean(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found.square().mean(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(found.argmax(1), logits.argmax(1))
    flat = torch.full((2, 3), 4.0, dtype=torch.float64, requires_grad=True)
    normalized_logits(flat).sum().backward()
    assert torch.equal(flat.grad, torch.zeros(2, 3, dtype=torch.float64))
