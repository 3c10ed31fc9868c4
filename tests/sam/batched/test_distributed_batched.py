"""All groups at once under DistributedDataParallel: two gloo processes against the loop in one process.

This file is also the script that each process runs.
"""

import sys

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lowland import SAM

from ..naive import added, bn_conv, mlp, naive_sam, regression, relative_error, squared, tensors
from ..processes import WORLD, attempt, found_by_ranks, work

TOL = 1e-12


def data(rank):
    return regression(10 + rank, examples=5)


def maps(rank):
    return tuple(tensors(20 + rank, (5, 2, 5, 5), (5, 2, 2, 2)))


def results_of(module, batch, engine, inner=False, **options):
    """Gradients, reductions and calls of the loss in two steps: the reducer must be ready anew."""
    ddp = DistributedDataParallel(module)
    reductions, calls, found = [], [], []

    def count(_, bucket):
        reductions.append(bucket.index())
        return allreduce_hook(None, bucket)

    def loss(*group):
        calls.append(1)
        return squared(ddp, *group)

    ddp.register_comm_hook(None, count)
    sam = SAM(module if inner else ddp, rho=0.4, engine=engine, max_memory=2**40, **options)
    for _ in range(2):
        ddp.zero_grad()
        reductions.clear()
        calls.clear()
        sam.backward(loss, *batch)
        grads = [p.grad.clone() for p in module.parameters()]
        buffers = [b.clone() for b in module.buffers()]
        found.append(
            {"grads": grads, "reductions": list(reductions), "calls": len(calls), "buffers": buffers}
        )
    return found


def scenarios(rank):
    """What each process runs, by name."""
    for engine in ("loop", "batched", "auto"):
        for m in (1, 2, 5):
            yield f"{engine} {m}", attempt(lambda e=engine, m=m: results_of(mlp(), data(rank), e, m=m))
        yield (
            f"{engine} steps",
            attempt(lambda e=engine: results_of(mlp(), data(rank), e, m=2, steps=2, l2=0.1)),
        )
        yield (
            f"{engine} batch norm",
            attempt(lambda e=engine: results_of(bn_conv(), maps(rank), e, m=2)),
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    return found_by_ranks("tests.sam.batched.test_distributed_batched", tmp_path_factory.mktemp("ddp"))


def mean_over_ranks(model, batches, **options):
    each = [naive_sam(model(), squared, batches(rank), rho=0.4, **options).gradients for rank in range(WORLD)]
    return [g / WORLD for g in added(*each)]


@pytest.mark.parametrize("engine", ["loop", "batched", "auto"])
@pytest.mark.parametrize(
    ("name", "model", "batches", "options"),
    [
        ("1", mlp, data, {"m": 1}),
        ("2", mlp, data, {"m": 2}),
        ("5", mlp, data, {"m": 5}),
        ("steps", mlp, data, {"m": 2, "steps": 2, "l2": 0.1}),
        ("batch norm", bn_conv, maps, {"m": 2}),
    ],
)
def test_gradient_is_the_mean_of_each_ranks_m_sam_reduced_once(ranks, engine, name, model, batches, options):
    expected = mean_over_ranks(model, batches, **options)
    for rank in range(WORLD):
        found = ranks[rank][f"{engine} {name}"]
        assert not isinstance(found, str), found
        for step in found:
            assert relative_error(step["grads"], expected) < TOL
            assert step["reductions"] == [0]


def test_batched_runs_all_full_groups_at_once_on_every_rank(ranks):
    for rank in range(WORLD):
        second = ranks[rank]["batched 1"][1]
        assert second["calls"] == 2
        assert ranks[rank]["loop 1"][1]["calls"] == 10


def test_running_statistics_of_every_rank_are_those_of_the_loop(ranks):
    for rank in range(WORLD):
        pairs = zip(ranks[rank]["batched batch norm"], ranks[rank]["loop batch norm"], strict=True)
        for found, expected in pairs:
            torch.testing.assert_close(found["buffers"], expected["buffers"], rtol=1e-12, atol=1e-13)


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
