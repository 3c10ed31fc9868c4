"""The batched engine on the networks of ``lowland.deep.models``: gradients and statistics of the loop."""

import pytest
import torch
import torch.nn.functional as F

from lowland.deep.models import build_model

from ..naive import tensors
from .agreement import assert_engines_agree

B = 4

MODELS = {
    "resnet_tiny": {"model_width": 2},
    "resnet_tiny_gn": {"model_width": 2},
    "resnet18": {"model_width": 2},
    "resnet18_gn": {"model_width": 2},
    "resnet34": {"model_width": 2},
    "wrn28": {"model_width": 2},
    "vgg16": {"model_width": 2},
}
QUICK = {"resnet_tiny", "resnet_tiny_gn"}

NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def network(name, classes=5):
    """The model with its own initialization, a loss and four images."""
    torch.manual_seed(0)
    module = build_model(name, num_classes=classes, **MODELS[name]).double()
    x = tensors(1, (B, 3, 32, 32))[0].sigmoid()
    y = torch.arange(B) * 3 % classes
    return module, lambda x, y: F.cross_entropy(module(x), y), (x, y)


@pytest.mark.parametrize("m", [1, 2, B])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_and_running_statistics_are_those_of_the_loop(name, m):
    small = name in {"resnet_tiny", "resnet_tiny_gn"}  # recording takes as long as several steps
    assert_engines_agree(lambda: network(name), m=m, recorded=small and m == 2)


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet_tiny_gn"])
def test_last_group_may_be_smaller(name):
    assert_engines_agree(lambda: network(name), m=3)


@pytest.mark.parametrize("bn_stats", ["first", "frozen"])
def test_statistics_move_as_often_as_in_the_loop(bn_stats):
    assert_engines_agree(lambda: network("resnet_tiny"), m=2, bn_stats=bn_stats, steps=2)


def test_network_in_evaluation_agrees_and_moves_nothing():
    def make():
        module, *rest = network("resnet_tiny")
        return module.eval(), *rest

    assert_engines_agree(make, m=1)
