"""The batched engine under DistributedDataParallel: two gloo processes against the loop in one process.

This file is also the script that each process runs.
"""

import sys
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lowland import SAM, sam_gradient

from ..naive import bits, bn_conv, mlp, regression, relative_error, rows, squared, tensors
from ..processes import WORLD, attempt, found_by_ranks, work
from .agreement import in_chunks_of

TOL = 1e-10
LOCAL = 6
ALL_AT_ONCE = 2**40


def vectors(rank):
    return regression(10 + rank, examples=LOCAL)


def maps(rank):
    return tuple(tensors(20 + rank, (LOCAL, 2, 5, 5), (LOCAL, 2, 2, 2)))


def count(reductions, bucket):
    reductions.append(bucket.index())
    return allreduce_hook(None, bucket)


def hooks_of(module):
    """How many hooks of each kind are registered, on modules and on parameters."""
    found = Counter()
    for part in module.modules():
        for kind, members in vars(part).items():
            if "hooks" in kind and isinstance(members, dict):
                found[kind] += len(members)
    for p in module.parameters():
        found["tensor"] += len(p._backward_hooks or ())
        found["accumulated"] += len(p._post_accumulate_grad_hooks or ())
    return dict(found)


def results_of(module, batch, **options):
    """Three steps of one network: gradients, reductions, calls of hooks, and what stays registered."""
    fired = Counter()
    for name, part in module.named_modules():
        part.register_forward_pre_hook(lambda *_, name=name: fired.update([f"{name} before"]))
        part.register_forward_hook(lambda *_, name=name: fired.update([f"{name} after"]))
    wrapping = {
        key: options.pop(key) for key in ("gradient_as_bucket_view", "bucket_cap_mb") if key in options
    }
    ddp = DistributedDataParallel(module, **wrapping)
    reductions = []
    ddp.register_comm_hook(reductions, count)
    sam = SAM(ddp, **({"rho": 0.4, "m": 2, "engine": "batched", "max_memory": ALL_AT_ONCE} | options))
    before = hooks_of(ddp)
    weights = [bits(p) for p in module.parameters()]
    found = []
    for _ in range(3):
        ddp.zero_grad()
        reductions.clear()
        fired.clear()
        calls = []

        def loss(*group, calls=calls):
            calls.append(1)
            return squared(ddp, *group)

        value = sam.backward(loss, *batch)
        found.append(
            {
                "loss": value,
                "grads": [p.grad.clone() for p in module.parameters()],
                "reductions": list(reductions),
                "calls": len(calls),
                "fired": dict(fired),
                "unmoved": weights == [bits(p) for p in module.parameters()],
                "same hooks": hooks_of(ddp) == before,
                "batches": [b.item() for n, b in module.named_buffers() if n.endswith("tracked")],
                "buffers": {n: b.clone() for n, b in module.named_buffers()},
            }
        )
    return found


def accumulated(rank):
    """Two calls, of which only the second is reduced."""
    module = mlp()
    ddp = DistributedDataParallel(module)
    reductions = []
    ddp.register_comm_hook(reductions, count)
    sam = SAM(ddp, rho=0.4, m=1, engine="batched", max_memory=ALL_AT_ONCE)
    batch = vectors(rank)
    with ddp.no_sync():
        sam.backward(lambda *b: squared(ddp, *b), *rows(batch, 0, 4), scale=0.5)
    sam.backward(lambda *b: squared(ddp, *b), *rows(batch, 2, 6), scale=0.5)
    return [{"grads": [p.grad.clone() for p in module.parameters()], "reductions": list(reductions)}]


def refused(rank):
    """What was said, and a call of the same module without the option afterwards."""
    module = mlp()
    ddp = DistributedDataParallel(module)
    said = attempt(lambda: backward(ddp, rank, process_group=dist.group.WORLD))
    ddp.zero_grad()
    backward(ddp, rank)
    return said, [{"grads": [p.grad.clone() for p in module.parameters()]}]


def backward(ddp, rank, **options):
    sam = SAM(ddp, rho=0.4, m=2, engine="batched", max_memory=ALL_AT_ONCE, **options)
    sam.backward(lambda *b: squared(ddp, *b), *vectors(rank))


SCENARIOS = {
    "one by one": {"m": 1},
    "groups of two": {"m": 2},
    "groups of three": {"m": 3},
    "chunks": {"m": 2, "chunks_of": 1},
    "bucket views": {"m": 2, "gradient_as_bucket_view": True},
    "steps": {"m": 2, "steps": 2, "step_size": 0.6, "l2": 0.1},
}
FORMED = ("gradient_as_bucket_view", "chunks_of")


def scenarios(rank):
    """What each process runs, by name."""
    for name, options in SCENARIOS.items():
        given = {key: value for key, value in options.items() if key != "chunks_of"}
        with in_chunks_of(options.get("chunks_of", LOCAL)):
            yield name, results_of(mlp(), vectors(rank), **given)
    yield "batch norm", results_of(bn_conv(), maps(rank), m=2)
    yield "accumulated", accumulated(rank)
    yield "together", refused(rank)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    return found_by_ranks("tests.sam.batched.test_distributed_batched", tmp_path_factory.mktemp("ddp"))


def by_the_loop(model, shares, **options):
    """The loop over the shares of all ranks, one after the other, in one process."""
    module = model()
    batch = tuple(torch.cat(column) for column in zip(*shares, strict=True))
    options = {"rho": 0.4, "m": 2} | {key: v for key, v in options.items() if key not in FORMED}
    return sam_gradient(
        lambda *b: squared(module, *b),
        list(module.parameters()),
        batch,
        module=module,
        engine="loop",
        **options,
    )


def shares(data):
    return [data(rank) for rank in range(WORLD)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_gradient_is_that_of_the_loop_over_the_whole_batch_in_one_process(ranks, name):
    expected = by_the_loop(mlp, shares(vectors), **SCENARIOS[name])
    for rank in range(WORLD):
        for step in ranks[rank][name]:
            assert relative_error(step["grads"], expected.gradients) <= TOL


@pytest.mark.parametrize("name", SCENARIOS)
def test_mean_of_the_ranks_losses_is_that_of_the_whole_batch(ranks, name):
    expected = by_the_loop(mlp, shares(vectors), **SCENARIOS[name]).loss
    for step in range(3):
        losses = torch.stack([found[name][step]["loss"] for found in ranks])
        torch.testing.assert_close(losses.mean(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*SCENARIOS, "batch norm", "accumulated"])
def test_gradients_are_reduced_once(ranks, name):
    for found in ranks:
        assert [len(step["reductions"]) for step in found[name]] == [1] * len(found[name])


@pytest.mark.parametrize("name", [*SCENARIOS, "batch norm"])
def test_ranks_end_with_the_same_gradients(ranks, name):
    for a, b in zip(ranks[0][name], ranks[1][name], strict=True):
        assert [bits(g) for g in a["grads"]] == [bits(g) for g in b["grads"]]


@pytest.mark.parametrize("name", [*SCENARIOS, "batch norm"])
def test_weights_stand_where_they_stood(ranks, name):
    assert all(step["unmoved"] for found in ranks for step in found[name])


@pytest.mark.parametrize(
    ("name", "calls"),
    [("one by one", 2), ("groups of two", 2), ("groups of three", 2), ("chunks", 6), ("steps", 3)],
)
def test_loss_runs_as_often_as_without_ddp(ranks, name, calls):
    for found in ranks:
        assert [step["calls"] for step in found[name][1:]] == [calls, calls]


@pytest.mark.parametrize("name", [*SCENARIOS, "batch norm"])
def test_forward_hooks_of_every_module_fire_once_per_call_of_the_loss(ranks, name):
    modules = [n for n, _ in (bn_conv() if name == "batch norm" else mlp()).named_modules()]
    for found in ranks:
        for step in found[name]:
            once = {f"{n} {when}": step["calls"] for n in modules for when in ("before", "after")}
            assert step["fired"] == once


@pytest.mark.parametrize("name", [*SCENARIOS, "batch norm"])
def test_nothing_stays_registered(ranks, name):
    assert all(step["same hooks"] for found in ranks for step in found[name])


def test_batch_norm_uses_each_groups_own_statistics(ranks):
    expected = by_the_loop(bn_conv, shares(maps), m=2).gradients
    for found in ranks:
        for step in found["batch norm"]:
            assert relative_error(step["grads"], expected) <= TOL
        assert [step["batches"] for step in found["batch norm"]] == [[3, 3], [6, 6], [9, 9]]


def test_running_statistics_are_those_of_the_loop_over_the_ranks_own_batch(ranks):
    """Rank 0's; DDP sends them to the other before each forward pass."""
    module = bn_conv()
    for step in range(3):
        sam_gradient(
            lambda *b: squared(module, *b),
            list(module.parameters()),
            maps(0),
            rho=0.4,
            m=2,
            module=module,
            engine="loop",
        )
        found = ranks[0]["batch norm"][step]["buffers"]
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(found[name], buffer, rtol=1e-12, atol=1e-12)


def test_accumulation_is_the_mean_of_its_calls(ranks):
    first = by_the_loop(mlp, [rows(share, 0, 4) for share in shares(vectors)], m=1).gradients
    second = by_the_loop(mlp, [rows(share, 2, 6) for share in shares(vectors)], m=1).gradients
    expected = [0.5 * (a + b) for a, b in zip(first, second, strict=True)]
    for found in ranks:
        assert relative_error(found["accumulated"][0]["grads"], expected) <= TOL


def test_climbing_together_is_refused_by_name_and_leaves_the_module_ready(ranks):
    expected = by_the_loop(mlp, shares(vectors), m=2).gradients
    for found in ranks:
        said, after = found["together"]
        assert said.startswith("Unbatchable:")
        assert "process_group" in said
        assert relative_error(after[0]["grads"], expected) <= TOL


def test_hooks_fire_and_nothing_stays_registered_in_one_process_either():
    module, fired = mlp(), Counter()
    for name, part in module.named_modules():
        part.register_forward_hook(lambda *_, name=name: fired.update([name]))
    before = hooks_of(module), hooks_of(nn.Module())
    sam = SAM(module, rho=0.4, m=2, engine="batched", max_memory=ALL_AT_ONCE)
    for _ in range(2):
        fired.clear()
        sam.backward(lambda *b: squared(module, *b), *vectors(0))
    assert fired == {name: 2 for name, _ in module.named_modules()}
    assert (hooks_of(module), hooks_of(nn.Module())) == before


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
