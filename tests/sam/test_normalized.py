"""What is said where a batch norm sees one example at a time."""

import warnings

import pytest
import torch
from torch import nn

from lowland import SAM
from lowland.sam.grouped import Grouped
from lowland.sam.normalized import warn_of_single_examples

from .naive import seeded, tensors


def made(*layers):
    torch.manual_seed(0)
    return seeded(nn.Sequential(nn.Conv2d(2, 3, 3), *layers, nn.Flatten(), nn.Linear(27, 2)))


def heard(module, m, examples=4):
    (x,) = tensors(1, (examples, 2, 5, 5))
    module(x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sam = SAM(module, rho=0.1, m=m, engine="loop")
        for _ in range(2):
            sam.backward(lambda x: module(x).square().mean(), x)
    return [str(w.message) for w in said if "normalizes each example" in str(w.message)]


def test_a_batch_norm_that_sees_one_example_is_named_once() -> None:
    (said,) = heard(made(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)), m=1)
    assert "the batch norm 1 (BatchNorm2d)" in said


@pytest.mark.parametrize("m", [2, None])
def test_nothing_is_said_of_larger_groups(m) -> None:
    assert heard(made(nn.BatchNorm2d(3)), m) == []


def test_nothing_is_said_of_a_batch_of_one_which_is_plain_training_too() -> None:
    assert heard(made(nn.BatchNorm2d(3)), m=1, examples=1) == []


def test_nothing_is_said_of_other_norms_or_of_evaluation_mode() -> None:
    assert heard(made(nn.GroupNorm(3, 3), nn.BatchNorm2d(3).eval()), m=1) == []


def test_nothing_is_said_of_statistics_that_all_processes_share() -> None:
    module = made(nn.BatchNorm2d(3))
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    x = torch.zeros(4, 2, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_single_examples(shared, Grouped((x,), 1), x)
