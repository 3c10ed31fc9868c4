"""Averaged weights, re-estimated statistics, and modes that come back."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lowland.deep.averaging import WeightAverage, has_batch_norm, mode, reestimate_batch_norm

from .room import copied, same_bits


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()


def inputs(sizes: tuple[int, ...] = (6, 6, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 + torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in sizes]


@pytest.mark.parametrize("tau", [0.0, 0.6, 0.999, 1.0])
def test_the_average_is_the_exponential_one_of_all_weights(tau: float) -> None:
    model = network()
    average = WeightAverage(model, tau)
    history = [[p.detach().clone() for p in model.parameters()]]
    for _ in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        history.append([p.detach().clone() for p in model.parameters()])
        average.update(model)
    shares = [tau**4] + [(1 - tau) * tau ** (4 - i) for i in range(1, 5)]
    for found, column in zip(average.model.parameters(), zip(*history, strict=True), strict=True):
        expected = sum(share * p for share, p in zip(shares, column, strict=True))
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad


def test_an_update_leaves_the_trained_network_alone() -> None:
    model = network()
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1)
    before = copied(model)
    average.update(model)
    assert same_bits(copied(model), before)
    assert all(p.requires_grad for p in model.parameters())
    assert not torch.equal(average.model[0].weight, model[0].weight)


def test_only_batch_norms_with_running_statistics_count() -> None:
    assert has_batch_norm(network())
    assert not has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)))
    assert not has_batch_norm(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))


def test_the_new_statistics_are_the_mean_of_those_of_the_batches() -> None:
    model = network()
    model(100 * inputs()[0])  # statistics that must not matter
    batches = inputs()
    reestimate_batch_norm(model, ([batch] for batch in batches))
    features = [model[0](x).detach() for x in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([f.mean(0) for f in features]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([f.var(0) for f in features]).mean(0))


def test_reestimation_moves_nothing_but_the_statistics() -> None:
    model = network()
    model[1].momentum = 0.37
    before = copied(model)
    reestimate_batch_norm(model.eval(), [[x] for x in inputs()])
    for name, tensor in copied(model).items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, before[name]), name
    assert model[1].momentum == 0.37
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_batch_leaves_modes_and_momenta_as_they_were() -> None:
    model = network()
    model[1].momentum = 0.37
    model[3].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [[x] for x in (*inputs(), torch.zeros(2, 99).double())])
    assert model[1].momentum == 0.37
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("training", [True, False])
def test_each_module_gets_its_own_mode_back_also_after_an_exception(training: bool) -> None:
    model = network()
    model[1].eval()
    before = [m.training for m in model.modules()]
    assert any(a != b for a, b in pairwise(before))
    with mode(model, training=training):
        assert all(m.training is training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    with pytest.raises(KeyError), mode(model, training=training):
        raise KeyError
    assert [m.training for m in model.modules()] == before


def test_re_estimation_draws_no_random_numbers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    batches = [torch.randn(8, 3), torch.randn(8, 3)]
    before = torch.get_rng_state()
    reestimate_batch_norm(model, [[batch] for batch in batches])
    assert torch.equal(torch.get_rng_state(), before)
    first = model[2].running_mean.clone()
    reestimate_batch_norm(model, [[batch] for batch in batches])
    assert torch.equal(model[2].running_mean, first)
