"""Loops of users under ``torchrun`` with two processes, against one process without communication.

This file is also the script that is launched.
"""

import itertools
import os
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lowland import SAM
from lowland.sam import examples_scale

from ..naive import bn_conv, mlp, regression, relative_error, rows, squared, tensors
from .launch import TORCHRUN, WORLD, check, found_by_ranks, state_of, work
from .truth import groups, trained

RHO, STEPS = 0.4, 3

CUT = {
    "whole": (None, "loop"),
    "pairs": (2, "loop"),
    "pairs at once": (2, "batched"),
    "singly": (1, "batched"),
}
"""m and the engine."""

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01, eps=1e-3)


def data(step, rank, examples=5):
    return regression(100 + 10 * step + rank, examples=examples)


def maps(step, rank):
    return tuple(tensors(200 + 10 * step + rank, (4, 2, 5, 5), (4, 2, 2, 2)))


def one(_):
    return 1.0


def loop(cut, *, make=SGD, model=mlp, batches=data, none=True, scale=one, micro=1, **options):
    """Weights and buffers of a rank's loop; ``scale`` is a function of the number of examples."""
    rank, (m, engine) = dist.get_rank(), CUT[cut]
    ddp = DistributedDataParallel(model(), **options)
    optimizer = make(ddp.parameters())
    sam = SAM(ddp, rho=RHO, m=m, engine=engine)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=none)
        *first, last = _micro_batches(batches(step, rank), micro)
        with ddp.no_sync():
            for part in first:
                sam.backward(partial(squared, ddp), *part, scale=scale(len(part[0])) / micro)
        sam.backward(partial(squared, ddp), *last, scale=scale(len(last[0])) / micro)
        optimizer.step()
    return state_of(ddp.module)


def _micro_batches(batch, micro):
    size = -(-len(batch[0]) // micro)
    return [rows(batch, i * size, (i + 1) * size) for i in range(micro)]


def of_truth(cut, *, make=SGD, model=mlp, batches=data, share=one, micro=1):
    """The same in one process; ``share`` is of a micro-batch, by step, rank and number of examples."""
    m, _ = CUT[cut]
    steps = [
        [
            [
                group
                for part in _micro_batches(batches(step, rank), micro)
                for group in groups(squared, part, m, share((step, rank)) / micro)
            ]
            for rank in range(WORLD)
        ]
        for step in range(STEPS)
    ]
    return trained(model(), steps, rho=RHO, make=make)


def uneven(step, rank):
    """Five and three examples, five and three, and in the last step four and one."""
    return data(step, rank, (5, 3)[rank] if step < 2 else (4, 1)[rank])


def share_of_examples(at):
    step, rank = at
    sizes = [len(uneven(step, r)[0]) for r in range(WORLD)]
    return WORLD * sizes[rank] / sum(sizes)


def zero(params, base=torch.optim.Adam, **options):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns of torch.jit

    return ZeroRedundancyOptimizer(params, optimizer_class=base, **options)


LOOPS = {
    "plain": ({}, {}),
    "ZeroRedundancyOptimizer": (
        {"make": partial(zero, lr=0.01, eps=1e-3)},
        {"make": ADAM},
    ),
    "ZeroRedundancyOptimizer, SGD": (
        {"make": partial(zero, base=torch.optim.SGD, lr=0.1, momentum=0.9)},
        {},
    ),
    "no_sync": ({"micro": 2}, {"micro": 2}),
    "bucket views": ({"gradient_as_bucket_view": True}, {}),
    "bucket views, zeroed": ({"gradient_as_bucket_view": True, "none": False}, {}),
    "bucket views, no_sync, zeroed": (
        {"gradient_as_bucket_view": True, "none": False, "micro": 2},
        {"micro": 2},
    ),
    "uneven": ({"batches": uneven}, {"batches": uneven}),
    "uneven, by examples": (
        {"batches": uneven, "scale": examples_scale},
        {"batches": uneven, "share": share_of_examples},
    ),
    "batch norm": ({"model": bn_conv, "batches": maps}, {"model": bn_conv, "batches": maps}),
    "batch norm, static graph": (
        {"model": bn_conv, "batches": maps, "static_graph": True},
        {"model": bn_conv, "batches": maps},
    ),
    "batch norm, no_sync": (
        {"model": bn_conv, "batches": maps, "micro": 2},
        {"model": bn_conv, "batches": maps, "micro": 2},
    ),
}
"""Options of the loop of a rank, and of the truth."""


# A rank whose data ends first


def joined(cut):
    """Rank 1 has a batch fewer."""
    rank, (m, engine) = dist.get_rank(), CUT[cut]
    ddp = DistributedDataParallel(bn_conv())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    sam = SAM(ddp, rho=RHO, m=m, engine=engine)
    with Join([ddp]):
        for step in range(STEPS - rank):
            optimizer.zero_grad()
            sam.backward(partial(squared, ddp), *maps(step, rank))
            optimizer.step()
    return state_of(ddp.module)


def frozen(cut):
    """Buffers after one call that moves none, where those of ranks were different before."""
    rank, (m, engine) = dist.get_rank(), CUT[cut]
    ddp = DistributedDataParallel(bn_conv())
    ddp.module[1].running_mean.add_(rank + 1.0)
    sam = SAM(ddp, rho=RHO, m=m, engine=engine, bn_stats="frozen")
    sam.backward(partial(squared, ddp), *maps(0, rank))
    return state_of(ddp.module)


# Batches of a DistributedSampler

EXAMPLES, BATCH = 12, 3


def sampled(m, *, shuffle=False, together=False):
    """Weights of an epoch and another, and the numbers of the examples that each pass saw."""
    x, y = regression(7, examples=EXAMPLES)
    dataset = TensorDataset(torch.arange(EXAMPLES), x, y)
    sampler = DistributedSampler(dataset, shuffle=shuffle, seed=3)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler)
    ddp = DistributedDataParallel(mlp())
    optimizer, seen = SGD(ddp.parameters()), []
    group = dist.group.WORLD if together else None
    sam = SAM(ddp, rho=RHO, m=m, engine="loop", process_group=group)

    def loss(i, x, y):
        seen.append(i.tolist())
        return squared(ddp, x, y)

    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            sam.backward(loss, *batch)
            optimizer.step()
    return *state_of(ddp.module), seen[::2]


def order(epoch, *, shuffle):
    if not shuffle:
        return list(range(EXAMPLES))
    generator = torch.Generator().manual_seed(3 + epoch)
    return torch.randperm(EXAMPLES, generator=generator).tolist()


def interleaved(*, shuffle):
    """The numbers of the examples in each step, by rank."""
    for epoch in range(2):
        shares = [order(epoch, shuffle=shuffle)[rank::WORLD] for rank in range(WORLD)]
        for start in range(0, EXAMPLES // WORLD, BATCH):
            yield [share[start : start + BATCH] for share in shares]


def of_numbers(numbers, m):
    x, y = regression(7, examples=EXAMPLES)
    return groups(squared, (x[numbers], y[numbers]), m)


SAMPLED = {
    f"m={m}, shuffle={shuffle}, together={together}": {"m": m, "shuffle": shuffle, "together": together}
    for m, shuffle, together in itertools.product((None, 2), (False, True), (False, True))
}


def scenarios():
    """What each process runs, by name."""
    found = {f"{name}, {cut}": partial(loop, cut, **LOOPS[name][0]) for name in LOOPS for cut in CUT}
    found |= {f"joined, {cut}": partial(joined, cut) for cut in CUT}
    found |= {f"frozen, {cut}": partial(frozen, cut) for cut in CUT}
    return found | {name: partial(sampled, **options) for name, options in SAMPLED.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("torchrun")
    command = [*TORCHRUN, "tests.sam.data_parallel.test_torchrun", str(folder)]
    return found_by_ranks([(command, {})], folder)


@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize("name", LOOPS)
def test_weights_and_buffers_of_ranks_are_those_of_one_process(ranks, name, cut):
    check(ranks, f"{name}, {cut}", of_truth(cut, **LOOPS[name][1]))


@pytest.mark.parametrize("cut", CUT)
def test_scale_makes_a_mean_over_examples_of_that_over_ranks(ranks, cut):
    by_ranks, by_examples = (ranks[0][f"{name}, {cut}"][0] for name in ("uneven", "uneven, by examples"))
    assert relative_error(by_ranks, by_examples) > 1e-3


def test_mean_over_examples_of_single_ones_is_that_of_a_process_with_all_of_them(ranks):
    batches = [[uneven(step, rank) for rank in range(WORLD)] for step in range(STEPS)]
    all_of_them = [[groups(squared, tuple(map(torch.cat, zip(*each, strict=True))), 1)] for each in batches]
    check(ranks, "uneven, by examples, singly", trained(mlp(), all_of_them, rho=RHO, make=SGD))


@pytest.mark.parametrize("cut", CUT)
def test_rank_that_has_joined_counts_as_a_zero_gradient(ranks, cut):
    """Buffers are those of the last rank that is there: first is the one that has them in the next step."""
    m, _ = CUT[cut]
    by_rank = [[groups(squared, maps(step, rank), m) for rank in range(WORLD)] for step in range(STEPS)]
    steps = [by_rank[0][::-1], by_rank[1], [by_rank[2][0], []]]
    weights, buffers = trained(bn_conv(), steps, rho=RHO, make=partial(torch.optim.SGD, lr=0.1))
    check(ranks, f"joined, {cut}", (weights, buffers[:1]))


@pytest.mark.parametrize("cut", CUT)
def test_buffers_that_do_not_move_are_those_of_rank_0_on_every_rank(ranks, cut):
    expected = bn_conv()
    expected[1].running_mean.add_(1.0)
    check(ranks, f"frozen, {cut}", (state_of(expected)[0], [state_of(expected)[1]]))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("m", [None, 2])
def test_sampler_interleaves_so_that_groups_of_a_rank_are_of_every_other_example(ranks, m, shuffle):
    """Without shuffling, rank 0 has examples 0, 2, 4 and rank 1 has 1, 3, 5: pairs are 0, 2 and 1, 3."""
    name = f"m={m}, shuffle={shuffle}, together=False"
    numbers = [*interleaved(shuffle=shuffle)]
    steps = [[of_numbers(own, m) for own in each] for each in numbers]
    check(ranks, name, trained(mlp(), steps, rho=RHO, make=SGD))
    for rank in range(WORLD):
        size = m or BATCH
        cut = [
            own[i : i + size]
            for own, i in ((each[rank], i) for each in numbers for i in range(0, BATCH, size))
        ]
        assert ranks[rank][name][2] == cut
    if not shuffle:
        assert [found[name][2][0] for found in ranks] == [[0, 2, 4][:size], [1, 3, 5][:size]]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("m", [None, 2])
def test_groups_of_a_process_group_are_of_examples_in_their_order(ranks, m, shuffle):
    """What the sampler dealt out is together again: the run is that of one process with twice the batch."""
    orders = [order(epoch, shuffle=shuffle) for epoch in range(2)]
    size = WORLD * BATCH
    steps = [[of_numbers(all_[i : i + size], m)] for all_ in orders for i in range(0, EXAMPLES, size)]
    check(ranks, f"m={m}, shuffle={shuffle}, together=True", trained(mlp(), steps, rho=RHO, make=SGD))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    work(scenarios(), os.environ["RANK"], sys.argv[1])
    dist.destroy_process_group()
