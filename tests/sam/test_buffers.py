"""Running statistics and other buffers: which passes move them, by hand-run batch norms."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from lowland import SAM, sam_gradient
from lowland.sam import weights_are_perturbed
from lowland.sam.buffers import Buffers

from .naive import added, bits, bn_conv, buffers_of, naive_sam, relative_error, rows, seeded, squared, tensors

BATCH = tuple(tensors(2, (8, 2, 5, 5), (8, 2, 2, 2)))
PREVIOUS = tuple(tensors(3, (8, 2, 5, 5), (8, 2, 2, 2)))


class CustomNorm(nn.Module):
    """A batch norm that is no torch class, and puts new tensors in the place of its statistics."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("absent", None)

    def forward(self, x):
        mean = x.mean((0, 2, 3))
        with torch.no_grad():
            self.mean = 0.9 * self.mean + 0.1 * mean
            self.steps = self.steps + 1
        shape = (1, -1, 1, 1)
        centred = x - mean.view(shape)
        return centred * self.weight.view(shape) + self.bias.view(shape)


def custom_conv():
    layers = [nn.Conv2d(2, 3, 3), CustomNorm(3), nn.Tanh(), nn.Conv2d(3, 2, 2), CustomNorm(2)]
    return nn.Sequential(*layers).double()


MODELS = {"torch": bn_conv, "custom": custom_conv, "cumulative": lambda: cumulative(bn_conv())}


def cumulative(module):
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    return module


def after_passes(module, passes):
    """Buffers after forward passes over ``(inputs, perturbation)``, in order, in one continuing copy."""
    twin = deepcopy(module)
    start = [p.detach().clone() for p in twin.parameters()]
    for x, e in passes:
        with torch.no_grad():
            for p, value in zip(twin.parameters(), added(start, e), strict=True):
                p.copy_(value)
            twin(x)
    return buffers_of(twin)


def expected_buffers(module, policy, *, rho, m, ascent_batch=None):
    """By hand, for one ascent step."""
    if policy == "frozen":
        return buffers_of(module)
    naive = naive_sam(module, squared, BATCH, rho=rho, m=m, ascent_batch=ascent_batch)
    zeros = [torch.zeros_like(p) for p in module.parameters()]
    passes = []
    for i, e in enumerate(naive.perturbations):
        x = rows(BATCH[0], i * m, i * m + m)
        if policy == "both" and ascent_batch is not None:
            passes.append((rows(ascent_batch[0], i * m, i * m + m), zeros))
        passes.append((x, zeros))
        if policy == "both":
            passes.append((x, e))
    return after_passes(module, passes)


@pytest.mark.parametrize("policy", ["first", "both", "frozen"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("another", [False, True])
def test_statistics_are_those_of_hand_run_passes(policy, model, known, another):
    module = MODELS[model]()
    extra = PREVIOUS if another else None
    expected = expected_buffers(module, policy, rho=0.2, m=3, ascent_batch=extra)
    naive = naive_sam(module, squared, BATCH, rho=0.2, m=3, ascent_batch=extra)
    sam = SAM(module if known else module.parameters(), rho=0.2, m=3, bn_stats=policy)
    sam.backward(lambda *b: squared(module, *b), *BATCH, ascent_batch=extra)
    found = dict(module.named_buffers())
    assert found.keys() == expected.keys()
    for name, buffer in found.items():
        value = torch.frombuffer(bytearray(expected[name]), dtype=buffer.dtype).reshape(buffer.shape)
        torch.testing.assert_close(buffer, value, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert relative_error([p.grad for p in module.parameters()], naive.gradients) < 1e-12


@pytest.mark.parametrize("known", [True, False])
def test_batches_are_counted_once_per_group(known):
    module = bn_conv()
    sam = SAM(module if known else list(module.parameters()), rho=0.2, m=3, steps=3)
    sam.backward(lambda *b: squared(module, *b), *BATCH)
    assert [module[1].num_batches_tracked.item(), module[4].num_batches_tracked.item()] == [3, 3]


def test_statistics_of_every_pass_of_several_steps_move_under_both():
    module = bn_conv()
    sam = SAM(module, rho=0.2, m=4, steps=3, bn_stats="both")
    sam.backward(lambda *b: squared(module, *b), *BATCH)
    assert module[1].num_batches_tracked.item() == 2 * 4


def test_radius_zero_moves_statistics_as_one_plain_pass_per_group():
    module = bn_conv()
    twin = deepcopy(module)
    SAM(module, rho=0.0, m=4).backward(lambda *b: squared(module, *b), *BATCH)
    twin(BATCH[0][:4])
    twin(BATCH[0][4:])
    assert buffers_of(module) == buffers_of(twin)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("policy", ["first", "frozen"])
def test_buffers_stay_the_same_tensors(known, policy):
    module = custom_conv() if policy == "frozen" else bn_conv()
    before = {name: (id(b), b.data_ptr()) for name, b in module.named_buffers()}
    sam = SAM(module if known else module.parameters(), rho=0.2, m=4, bn_stats=policy)
    sam.backward(lambda *b: squared(module, *b), *BATCH)
    assert {name: (id(b), b.data_ptr()) for name, b in module.named_buffers()} == before


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_no_global_hook_is_left_behind(known, fails):
    module = bn_conv()
    before = dict(module_hooks._global_forward_pre_hooks)

    def loss(x, y):
        if fails and module[1].num_batches_tracked.item() == 1:
            raise RuntimeError("stop")
        return squared(module, x, y)

    sam = SAM(module if known else module.parameters(), rho=0.2, m=4)
    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            sam.backward(loss, *BATCH)
    else:
        sam.backward(loss, *BATCH)
    assert dict(module_hooks._global_forward_pre_hooks) == before


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_buffers_come_back_when_a_pass_raises(known, failing_call):
    module = nn.Sequential(custom_conv(), nn.BatchNorm2d(2).double())
    before, calls = buffers_of(module), []

    def loss(x, y):
        calls.append(None)
        value = squared(module, x, y)
        if len(calls) == failing_call:
            raise KeyboardInterrupt
        return value

    sam = SAM(module if known else module.parameters(), rho=0.2, m=4, bn_stats="both")
    with pytest.raises(KeyboardInterrupt):
        sam.backward(loss, *BATCH)
    assert buffers_of(module) == before


@pytest.mark.parametrize("known", [True, False])
def test_layer_that_runs_in_the_second_pass_only_keeps_its_statistics(known):
    module, late, calls = bn_conv(), nn.BatchNorm2d(2).double(), []
    before = buffers_of(late)

    def loss(x, y):
        calls.append(None)
        out = module(x)
        return ((late(out) if len(calls) == 2 else out) - y).square().mean()

    both = nn.ModuleList([module, late])
    SAM(both if known else both.parameters(), rho=0.2).backward(loss, *BATCH)
    assert buffers_of(late) == before
    assert module[1].num_batches_tracked.item() == 1


class Lazy(nn.Module):
    """Its buffer is None until it first runs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("seen", None)

    def forward(self, x):
        self.seen = x.mean(0) if self.seen is None else self.seen + x.mean(0)
        return self.linear(x)


@pytest.mark.parametrize("known", [True, False])
def test_buffer_that_a_frozen_pass_creates_is_none_again(known):
    module = Lazy()
    sam = SAM(module if known else module.parameters(), rho=0.2, bn_stats="frozen")
    sam.backward(lambda x: module(x).square().mean(), torch.ones(3, 4))
    assert module.seen is None


@pytest.mark.parametrize("known", [True, False])
def test_buffer_that_the_first_pass_creates_is_the_first_passes(known):
    module = Lazy()
    sam = SAM(module if known else module.parameters(), rho=0.2)
    sam.backward(lambda x: module(x).square().mean(), torch.ones(3, 4))
    assert module.seen.tolist() == [1.0] * 4


def test_modules_in_evaluation_mode_have_nothing_to_move():
    module = bn_conv().eval()
    before = buffers_of(module)
    result = sam_gradient(
        lambda *b: squared(module, *b), list(module.parameters()), BATCH, rho=0.2, m=3, bn_stats="both"
    )
    assert buffers_of(module) == before
    assert relative_error(result.gradients, naive_sam(module, squared, BATCH, rho=0.2, m=3).gradients) < 1e-12


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_are_not_touched(fails):
    module = nn.Sequential(bn_conv(), nn.BatchNorm2d(2).double(), nn.Dropout())
    module[1].eval()
    before, during = [m.training for m in module.modules()], []

    def loss(x, y):
        during.append([m.training for m in module.modules()])
        if fails and len(during) == 2:
            raise RuntimeError("stop")
        return squared(module, x, y)

    try:
        SAM(module, rho=0.2, m=4).backward(loss, *BATCH)
    except RuntimeError:
        assert fails
    assert [m.training for m in module.modules()] == before
    assert all(flags == before for flags in during)


def test_momentum_of_batch_norms_is_not_touched():
    module = bn_conv()
    module[1].momentum = 0.37
    SAM(module, rho=0.2).backward(lambda *b: squared(module, *b), *BATCH)
    assert module[1].momentum == 0.37


def test_kept_puts_replaced_and_mutated_buffers_back():
    custom, torch_norm = CustomNorm(2), nn.BatchNorm2d(2)
    module = nn.Sequential(custom, torch_norm)
    before = buffers_of(module)
    mean = custom.mean
    with Buffers(module).kept():
        module(torch.ones(2, 2, 3, 3))
        assert buffers_of(module) != before
    assert buffers_of(module) == before
    assert custom.mean is mean
    assert bits(mean) == before["0.mean"]


class RegistersLate(nn.Linear):
    """Gets another buffer at perturbed weights."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("own", torch.zeros(2))

    def forward(self, x):
        if weights_are_perturbed():
            self.register_buffer("late", x.detach().mean())
        return super().forward(x)


def test_buffer_that_a_perturbed_pass_registers_is_gone_afterwards():
    model = seeded(nn.Sequential(RegistersLate(), nn.Linear(3, 2)))
    x, y = tensors(0, (6, 4), (6, 2))
    SAM(model, rho=0.1, m=3, engine="loop").backward(lambda *b: squared(model, *b), x, y)
    assert list(buffers_of(model)) == ["0.own"]
