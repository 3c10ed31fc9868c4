"""Running statistics of batch norm, and other state of layers."""

import pytest
import torch
from torch import nn

from lowland import SAM

from ..naive import bn_conv, buffers_of, rows, squared, tensors
from .ways import WAYS, sgd

BATCH = tuple(tensors(2, (8, 2, 5, 5), (8, 2, 2, 2)))


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def loss_of(module):
    return lambda: squared(module, *BATCH)


def momenta(module):
    return [layer.momentum for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_num_batches_tracked_counts_a_step_once(way):
    """The momentum=0 trick of davda54's example, GSAM, pytorch_optimizer, F-SAM, zij counts it twice."""
    module = bn_conv()
    step = way(module, sgd(module), rho=0.2)
    for _ in range(3):
        step(loss_of(module))
    assert [module[i].num_batches_tracked.item() for i in (1, 4)] == [3, 3]


@pytest.mark.parametrize("way", ["closure", "two steps"])
def test_two_passes_in_a_row_that_keep_the_statistics_do_not_freeze_them(way):
    """The same trick, disabled twice: the momentum of 0 is taken for the one to go back to.

    Here a step of SAM lies inside the second pass of another one.
    """
    outer, inner = bn_conv(), bn_conv(1)
    nested = WAYS[way](inner, sgd(inner), rho=0.2)

    def loss():
        nested(loss_of(inner))
        return squared(outer, *BATCH)

    before = momenta(outer), momenta(inner)
    WAYS[way](outer, sgd(outer), rho=0.2)(loss)
    assert (momenta(outer), momenta(inner)) == before
    twin = bn_conv()
    squared(twin, *BATCH)
    assert buffers_of(outer) == buffers_of(twin)
    assert inner[1].num_batches_tracked.item() == 1, "what the loss does elsewhere is done once"


def test_statistics_are_those_of_the_unperturbed_pass(way):
    """composer, ASAM, SSAM, ESAM, temperon, sam-sps, pytorch_optimizer: perturbed passes move them too."""
    module, twin = bn_conv(), bn_conv()
    way(module, sgd(module), rho=0.2)(loss_of(module))
    squared(twin, *BATCH)
    assert buffers_of(module) == buffers_of(twin)


def test_statistics_move_again_after_an_exception_in_the_second_pass(way):
    """GSAM: the batch norms keep a momentum of 0 for good."""
    module, calls = bn_conv(), []
    before = momenta(module)
    step = way(module, sgd(module), rho=0.2)

    def loss():
        calls.append(None)
        value = squared(module, *BATCH)
        if len(calls) == 2:
            raise RuntimeError("stop")
        return value

    with pytest.raises(RuntimeError, match="stop"):
        step(loss)
    assert momenta(module) == before
    start = buffers_of(module)
    step(loss)
    assert buffers_of(module) != start


class OwnNorm(nn.Module):
    """A batch norm that no isinstance check knows."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, features, 1, 1))
        self.register_buffer("mean", torch.zeros(1, features, 1, 1))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        mean = x.mean((0, 2, 3), keepdim=True)
        self.mean.lerp_(mean.detach(), 0.1)
        self.steps += 1
        return (x - mean) * self.weight


def test_norms_that_are_no_torch_class_follow_the_policy(way):
    """mlcommons PR 325, and all who ask for isinstance(module, _BatchNorm)."""
    module, twin = (nn.Sequential(nn.Conv2d(2, 2, 4), OwnNorm(2)).double() for _ in range(2))
    twin.load_state_dict(module.state_dict())
    way(module, sgd(module), rho=0.2)(loss_of(module))
    squared(twin, *BATCH)
    assert buffers_of(module) == buffers_of(twin)
    assert module[1].steps.item() == 1


@pytest.mark.parametrize(
    "options", [{"steps": 3}, {"ascent_batch": tuple(tensors(9, (8, 2, 5, 5), (8, 2, 2, 2)))}]
)
def test_further_passes_do_not_move_statistics_either(options):
    """SSAM-F: the passes that look for its mask run in training mode and leave their statistics behind."""
    module, twin = bn_conv(), bn_conv()
    extra = {k: options[k] for k in options if k == "ascent_batch"}
    sam = SAM(module, rho=0.2, **{k: options[k] for k in options if k != "ascent_batch"})
    sam.backward(lambda *b: squared(module, *b), *BATCH, **extra)
    squared(twin, *BATCH)
    assert buffers_of(module) == buffers_of(twin)


def test_first_pass_is_in_training_mode(way):
    """tf-keras: the climb's gradient is taken in inference mode, so that it is that of another function."""
    module, modes = nn.Sequential(bn_conv(), nn.Dropout(0.5)), []

    def loss():
        modes.append(all(layer.training for layer in module.modules()))
        return squared(module, *BATCH)

    way(module, sgd(module), rho=0.2)(loss)
    assert modes == [True, True]


def test_groups_with_batch_norm_do_not_leak_into_each_other():
    """DAMP synchronizes the statistics of its groups; in bayesian-sam only those of group 0 survive."""
    module, twin = bn_conv(), bn_conv()
    sam = SAM(module, rho=0.2, m=4, diagnostics=True)
    sam.backward(lambda *b: squared(module, *b), *BATCH)
    first = sam.last_diagnostics
    other = tuple(
        torch.cat([a[:4], b[:4]]) for a, b in zip(BATCH, tensors(9, (8, 2, 5, 5), (8, 2, 2, 2)), strict=True)
    )
    other_sam = SAM(twin, rho=0.2, m=4, diagnostics=True)
    other_sam.backward(lambda *b: squared(twin, *b), *other)
    second = other_sam.last_diagnostics
    assert first.gradient_norm[0] == second.gradient_norm[0]
    assert first.perturbed_loss[0] == second.perturbed_loss[0]
    assert first.gradient_norm[1] != second.gradient_norm[1]
    by_hand = bn_conv()
    for start in (0, 4):
        squared(by_hand, *rows(BATCH, start, start + 4))
    assert buffers_of(module) == buffers_of(by_hand)
