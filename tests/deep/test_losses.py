"""Losses against their closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowland.deep import TrainConfig
from lowland.deep.losses import (
    as_logits,
    build_loss,
    cross_entropy,
    generalized_cross_entropy,
    offset_logistic,
    smallest_cross_entropies,
)

F64 = torch.float64


def outputs(n: int = 6, classes: int = 4) -> Tensor:
    return 3 * torch.randn(n, classes, dtype=F64, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
SIGNS = torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0, -1.0], dtype=F64)
BINARY = (SIGNS > 0).long()


def probabilities(of: Tensor) -> Tensor:
    powers = of.exp()
    return (powers / powers.sum(1, keepdim=True))[torch.arange(len(of)), LABELS]


def test_one_output_stands_for_the_logits_zero_and_itself() -> None:
    f = outputs(classes=1)
    assert torch.equal(as_logits(f), torch.stack([torch.zeros(6, dtype=F64), f[:, 0]], dim=1))
    assert as_logits(outputs()) is not None
    assert torch.equal(as_logits(outputs()), outputs())


def test_cross_entropy_is_minus_the_log_of_the_labels_probability() -> None:
    torch.testing.assert_close(cross_entropy(outputs(), LABELS), -probabilities(outputs()).log())


def test_for_two_classes_it_is_the_logistic_loss_of_the_signed_output() -> None:
    f = outputs(classes=1)
    torch.testing.assert_close(cross_entropy(f, BINARY), torch.log(1 + torch.exp(-SIGNS * f[:, 0])))


def test_two_outputs_are_the_logistic_loss_of_their_difference() -> None:
    f = outputs(classes=2)
    difference = f[:, 1] - f[:, 0]
    torch.testing.assert_close(cross_entropy(f, BINARY), torch.log(1 + torch.exp(-SIGNS * difference)))


@given(offset=st.floats(-5, 5))
def test_the_offset_stands_inside_the_exponent(offset: float) -> None:
    f = outputs(classes=1)
    expected = torch.log(1 + torch.exp(-SIGNS * f[:, 0] + offset))
    torch.testing.assert_close(offset_logistic(f, BINARY, offset=offset), expected)


def test_a_logistic_loss_without_offset_is_the_cross_entropy() -> None:
    f = outputs(classes=1)
    torch.testing.assert_close(offset_logistic(f, BINARY, offset=0.0), cross_entropy(f, BINARY))


def test_a_confidently_wrong_example_has_a_finite_loss_and_gradient() -> None:
    f = torch.tensor([[-1000.0], [1000.0]], dtype=F64, requires_grad=True)
    labels = torch.tensor([1, 1])
    losses = offset_logistic(f, labels, offset=1.0)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([1001.0, 0.0], dtype=F64))
    assert f.grad is not None
    assert f.grad.flatten().tolist() == [-1.0, 0.0]


@given(q=st.floats(0.05, 1.0))
def test_generalized_cross_entropy_is_a_power_of_the_labels_probability(q: float) -> None:
    p = probabilities(outputs())
    torch.testing.assert_close(generalized_cross_entropy(outputs(), LABELS, q=q), (1 - p**q) / q)


def test_generalized_cross_entropy_lies_between_cross_entropy_and_the_absolute_error() -> None:
    absolute = generalized_cross_entropy(outputs(), LABELS, q=1.0)
    torch.testing.assert_close(absolute, 1 - probabilities(outputs()))
    nearly = generalized_cross_entropy(outputs(), LABELS, q=1e-9)
    torch.testing.assert_close(nearly, cross_entropy(outputs(), LABELS), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("dropped", "kept"), [(0.0, 6), (0.1, 6), (0.17, 5), (0.5, 3), (0.99, 1), (1.0, 1)])
def test_the_largest_losses_are_dropped_but_never_all(dropped: float, kept: int) -> None:
    losses = smallest_cross_entropies(outputs(), LABELS, dropped=dropped)
    expected = cross_entropy(outputs(), LABELS).sort().values[:kept]
    assert torch.equal(losses.sort().values, expected)


def test_a_config_names_its_loss_and_its_parameter() -> None:
    f, y = outputs(classes=2), BINARY
    share = 1 / 3
    expected = {
        TrainConfig(): cross_entropy(f, y),
        TrainConfig(loss="ce_offset", loss_offset=0.7): offset_logistic(f, y, offset=0.7),
        TrainConfig(loss="gce", gce_q=0.3): generalized_cross_entropy(f, y, q=0.3),
        TrainConfig(loss="smallest_k_ce", frac_rm_per_batch=share): smallest_cross_entropies(
            f, y, dropped=share
        ),
    }
    for config, losses in expected.items():
        assert torch.equal(build_loss(config)(f, y), losses)
    assert not any(math.isnan(losses.sum()) for losses in expected.values())
