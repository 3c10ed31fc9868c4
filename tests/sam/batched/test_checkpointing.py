"""Activation checkpointing and offloading inside the loss: what is run again, is run where it ran first."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lowland import SAM
from lowland.sam import Random
from lowland.sam.unbatchable import Unbatchable

from ..naive import Count, relative_error

B, T = 6, 5


class Blocks(nn.Module):
    """A small language model of residual blocks, each of which ``run`` runs."""

    def __init__(self, run, *, drop=0.0, norm=nn.LayerNorm):
        super().__init__()
        self.run, self.drop = run, drop
        self.embed, self.norm = nn.Embedding(11, 8), norm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.conv, self.head = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 11)

    def mlp(self, x):
        return x + self.down(F.dropout(torch.tanh(self.up(self.norm(x))), self.drop))

    def mixed(self, x):
        """A block with another one in it, tied weights, and weights that are used outside a layer."""
        x = self.run(self.mlp, x)
        return F.gelu(self.conv(x.transpose(-1, -2)).transpose(-1, -2)) @ self.up.weight.t() @ self.up.weight

    def forward(self, x):
        h = self.embed(x)
        for block in (self.mlp, self.mixed, self.mlp):
            h = self.run(block, h)
        return self.head(h)


def plainly(block, x):
    return block(x)


checkpointed = partial(checkpoint, use_reentrant=False)


def offloaded(block, x):
    with torch.autograd.graph.save_on_cpu():
        return block(x)


WAYS = {
    "checkpoint": checkpointed,
    "to the end": partial(checkpointed, early_stop=False),
    "with contexts": partial(
        checkpointed, context_fn=lambda: (torch.autograd.graph.save_on_cpu(), warnings.catch_warnings())
    ),
    "offload": offloaded,
}


def gradient(run, engine, m, *, drop=0.0, norm=nn.LayerNorm, **options):
    """The gradient and the buffers of one step, and how often the loss ran."""
    torch.manual_seed(0)
    model, count = Blocks(run, drop=drop, norm=norm).double(), Count()
    x, y = torch.randint(11, (2, B, T))

    def loss(x, y):
        count.add()
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    SAM(model, rho=0.2, m=m, engine=engine, **options).backward(loss, x, y)
    return [p.grad for p in model.parameters()], list(model.buffers()), len(count)


@pytest.mark.parametrize("m", [1, 2, B])
@pytest.mark.parametrize("way", WAYS)
def test_gradient_is_that_without_it(way, m) -> None:
    expected, _, _ = gradient(plainly, "loop", m)
    for engine in ("loop", "batched"):
        found, _, calls = gradient(WAYS[way], engine, m)
        assert relative_error(found, expected) <= 1e-12
        assert calls == (2 * B // m if engine == "loop" else 1 + 2)  # one to try it with


@pytest.mark.parametrize("options", [{"steps": 2}, {"l2": 0.1}, {"diagnostics": True}, {"max_memory": 2**40}])
def test_gradient_is_that_without_it_with(options) -> None:
    expected, _, _ = gradient(plainly, "batched", 2, **options)
    found, _, _ = gradient(checkpointed, "batched", 2, **options)
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("m", [1, 3])
def test_an_inner_checkpoint_of_what_the_outer_one_made_is_run_again(m) -> None:
    """Its operations save something only because its input needs a gradient."""
    found = []
    for run, engine in ((plainly, "loop"), (checkpointed, "loop"), (checkpointed, "batched")):
        torch.manual_seed(0)
        w = [nn.Parameter(torch.randn(4, 4).double()) for _ in range(2)]

        def loss(x, run=run, w=w):
            return F.linear(run(lambda x: run(torch.tanh, F.linear(x, w[0])), x), w[1]).square().mean()

        SAM(w, rho=0.2, m=m, engine=engine).backward(loss, torch.randn(B, 4).double())
        found.append([p.grad for p in w])
    assert relative_error(found[1], found[0]) <= 1e-12
    assert relative_error(found[2], found[0]) <= 1e-12


@pytest.mark.parametrize("m", [1, 2])
def test_draws_are_the_same_when_it_runs_again(m) -> None:
    expected, _, _ = gradient(plainly, "batched", m, drop=0.5)
    found, _, _ = gradient(checkpointed, "batched", m, drop=0.5)
    assert relative_error(found, expected) <= 1e-12


def test_forms_are_chosen_as_without_it() -> None:
    """What is recorded is recorded once, and of as many rows."""
    expected, found = ({}, {})
    for run, seen in ((plainly, expected), (checkpointed, found)):
        with pytest.MonkeyPatch.context() as patch:
            _spied(patch, seen)
            gradient(run, "batched", 2)
    assert found == expected
    assert sum(expected.values()) > 10


def _spied(patch, seen):
    from lowland.sam.batched.weights import Weight

    record = Weight.record

    def noting(self, part, *, form, product):
        key = tuple(self.param.shape), self.rows, form, part.start, part.stop
        seen[key] = seen.get(key, 0) + 1
        record(self, part, form=form, product=product)

    patch.setattr(Weight, "record", noting)


class PerPosition(nn.BatchNorm1d):
    """Batch norm over the examples and positions of a sequence."""

    def forward(self, x):
        return super().forward(x.transpose(-1, -2)).transpose(-1, -2)


def test_statistics_that_would_move_twice_are_left_to_the_loop() -> None:
    with pytest.raises(Unbatchable, match="inside hooks on saved tensors: a checkpoint moves them twice"):
        gradient(checkpointed, "batched", 2, norm=PerPosition)
    expected, _, _ = gradient(plainly, "loop", 2, norm=PerPosition, bn_stats="frozen")
    found, _, _ = gradient(checkpointed, "batched", 2, norm=PerPosition, bn_stats="frozen")
    assert relative_error(found, expected) <= 1e-12


def test_statistics_inside_an_offload_inside_a_checkpoint_are_left_to_the_loop_too() -> None:
    def run(block, x):
        return checkpointed(partial(offloaded, block), x)

    with pytest.raises(Unbatchable, match="a checkpoint moves them twice"):
        gradient(run, "batched", 2, norm=PerPosition)


class Pack:
    """Hooks that are no functions."""

    def __call__(self, tensor):
        return tensor


def by_an_object(block, x):
    with torch.autograd.graph.saved_tensors_hooks(Pack(), Pack()):
        return block(x)


def doubled(block, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t + t, lambda t: t / 2):
        return block(x)


selective = partial(
    checkpointed, context_fn=partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (doubled, r"hooks on saved tensors, .*test_checkpointing\.doubled"),
        (by_an_object, r"hooks on saved tensors, .*test_checkpointing\.Pack"),
        (selective, "selective activation checkpointing, which keeps what rules write to"),
    ],
)
def test_other_hooks_are_left_to_the_loop_by_name(run, said) -> None:
    with pytest.raises(Unbatchable, match=said):
        gradient(run, "batched", 2)
    found, _, _ = gradient(run, "loop", 2)
    assert relative_error(found, gradient(plainly, "loop", 2)[0]) <= 1e-12


def test_an_error_when_it_runs_again_leaves_nothing() -> None:
    class Once(Exception):
        pass

    torch.manual_seed(0)
    model, calls = nn.Linear(4, 3).double(), []
    before = [p.detach().clone() for p in model.parameters()]

    def block(x):
        calls.append(1)
        if len(calls) == 4:  # the probe runs it twice, then comes the first pass
            raise Once
        return torch.tanh(model(x))

    def loss(x):
        return checkpointed(block, x).square().mean()

    sam, x = SAM(model, rho=0.2, m=1, engine="batched"), torch.randn(B, 4).double()
    with pytest.raises(Once):
        sam.backward(loss, x)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert sam.steps_done == 0
    calls.extend([1] * 9)
    sam.backward(loss, x)
    assert sam.steps_done == 1


@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("options", [{"rho": 0.1}, {"rho": 0.0}, {"rho": 0.1, "ascent": Random()}])
def test_a_reentrant_checkpoint_that_hides_its_parameters_is_refused(engine, other, options) -> None:
    """Nothing before it is trained, so that torch has nothing to complain of: adapters on a frozen base."""
    torch.manual_seed(0)
    inner, head = nn.Linear(4, 4), nn.Linear(4, 3).requires_grad_(other)
    params = [*inner.parameters(), *(head.parameters() if other else ())]

    def loss(x):
        x = x.detach().requires_grad_()
        return head(checkpoint(lambda t: torch.tanh(inner(t)), x, use_reentrant=True)).square().mean()

    with pytest.raises(
        ValueError, match=r"^loss must checkpoint its activations with use_reentrant=False, got"
    ):
        SAM(params, m=2, engine=engine, **options).backward(loss, torch.randn(64, 4))
    assert all(p.grad is None for p in params)


def test_what_is_saved_when_a_part_runs_again_counts_as_memory() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.Tanh())]).double()
    calls = []
    for run in (plainly, checkpointed):
        count = Count()

        def loss(x, run=run, count=count):
            count.add()
            return run(layers, x).square().mean()

        sam = SAM(layers, rho=0.1, m=1, engine="batched", max_memory=100_000)
        for _ in range(2):
            before = len(count)
            sam.backward(loss, torch.randn(48, 4, 16).double())
        calls.append(len(count) - before)
    assert calls[0] == calls[1] > 2
