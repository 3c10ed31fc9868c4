"""m-SAM under DistributedDataParallel: two gloo processes against one process that computes both shares.

This file is also the script that each process runs.
"""

import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lowland import SAM, Unnormalized, sam_gradient
from lowland.sam import Functional, Random, RandomSubset

from .naive import (
    added,
    bn_conv,
    mlp,
    naive_sam,
    regression,
    relative_error,
    rows,
    squared,
    tensors,
    value_and_gradient,
)
from .processes import WORLD, attempt, found_by_ranks, work

TOL = 1e-12


def data(rank):
    return regression(10 + rank, examples=5)


def maps(rank):
    return tuple(tensors(20 + rank, (5, 2, 5, 5), (5, 2, 2, 2)))


class Counted(DistributedDataParallel):
    """Counts its reductions."""

    def __init__(self, module, **options):
        super().__init__(module, **options)
        self.reductions = []
        self.register_comm_hook(self.reductions, count)


def count(reductions, bucket):
    reductions.append(bucket.index())
    return allreduce_hook(None, bucket)


def results_of(module, steps, **options):
    """Gradients and reductions of ``steps(ddp)``, then of the same again: the reducer must be ready anew."""
    ddp = Counted(module, **options)
    found = []
    for _ in range(2):
        ddp.zero_grad()
        ddp.reductions.clear()
        steps(ddp)
        grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        found.append({"grads": grads, "reductions": list(ddp.reductions)})
    return found


class Skips(nn.Module):
    """A layer that only groups with a positive first input use."""

    def __init__(self):
        super().__init__()
        self.body, self.extra = mlp(), mlp(1)

    def forward(self, x):
        return self.body(x) + self.extra(x) if x[0, 0] > 0 else self.body(x)


def skipping(rank, last):
    """Two groups of two examples, of which one uses the extra layer."""
    x, y = regression(30 + rank, examples=4)
    x[:, 0] = -x[:, 0].abs()
    x[2 if last else 0, 0] = 1.0
    return x, y


RANDOM = {
    "random": (torch.float32, {"ascent": Random()}),
    "subset": (torch.float32, {"ascent": RandomSubset(0.5)}),
    "rounding": (torch.bfloat16, {}),
    "random and rounding": (torch.bfloat16, {"ascent": Random(), "m": 2}),
}


def at_random(rank, **together):
    """The weights that each pass ran at, and the generator's next draw, on ranks that are seeded apart."""
    found = {}
    for name, (dtype, options) in RANDOM.items():
        torch.manual_seed(100 + rank)
        module = mlp(dtype=dtype)
        seen = []

        def loss(x, y, module=module, seen=seen):
            seen.append([p.detach().clone() for p in module.parameters()])
            return squared(module, x, y)

        batch = tuple(t.to(dtype) for t in data(rank))
        SAM(module, rho=0.4, engine="loop", **options, **together).backward(loss, *batch)
        found[name] = seen, torch.rand(3)
    return found


def in_halves(module):
    return Functional(lambda x, _: module(x), lambda z, _, y: (z - y).pow(4).mean())


def scenarios(rank):
    """What each process runs, by name."""
    batch = data(rank)

    def backward(batch, squared=squared, **options):
        extra = {k: options.pop(k) for k in ("scale", "ascent_batch") if k in options}

        def steps(ddp):
            SAM(ddp, rho=0.4, **options).backward(lambda *b: squared(ddp, *b), *batch, **extra)

        return steps

    def accumulated(ddp):
        sam = SAM(ddp, rho=0.4, m=2)
        with ddp.no_sync():
            sam.backward(lambda *b: squared(ddp, *b), *rows(batch, 0, 2), scale=0.5)
        sam.backward(lambda *b: squared(ddp, *b), *rows(batch, 2, 4), scale=0.5)

    yield "whole", results_of(mlp(), backward(batch))
    yield "groups of two", results_of(mlp(), backward(batch, m=2))
    yield "one by one", results_of(mlp(), backward(batch, m=1))
    yield "bucket views", results_of(mlp(), backward(batch, m=2), gradient_as_bucket_view=True)
    yield "steps", results_of(mlp(), backward(batch, m=2, steps=2, step_size=0.6, l2=0.1))
    yield "another", results_of(mlp(), backward(batch, m=2, ascent_batch=data(rank + 5)))
    yield "accumulated", results_of(mlp(), accumulated)
    together = {"process_group": dist.group.WORLD}
    yield "together", results_of(mlp(), backward(batch, **together))
    yield "groups together", results_of(mlp(), backward(batch, m=4, steps=2, l2=0.1, **together))
    uneven = tuple(t[: 4 - rank] for t in batch)
    yield "uneven, together", results_of(mlp(), backward(uneven, ascent=Unnormalized(), **together))
    yield "uneven groups, together", attempt(lambda: results_of(mlp(), backward(uneven, m=6, **together)))

    def functional(**options):
        return lambda ddp: SAM(ddp, rho=0.4, **options).backward(in_halves(ddp), *batch)

    yield "functional", results_of(mlp(), functional(m=2))
    yield "functional, together", results_of(mlp(), functional(**together))
    yield "random, together", at_random(rank, **together)
    yield "random, apart", at_random(rank)
    module = bn_conv()
    yield "batch norm", results_of(module, backward(maps(rank), m=2))
    yield "batches", [b.item() for n, b in module.named_buffers() if n.endswith("num_batches_tracked")]
    yield "static graph", attempt(lambda: results_of(mlp(), backward(batch, m=2), static_graph=True))
    for last in (False, True):
        steps = partial(results_of, Skips(), backward(skipping(rank, last), m=2), find_unused_parameters=True)
        yield f"unused, last={last}", attempt(steps)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    return found_by_ranks("tests.sam.test_distributed", tmp_path_factory.mktemp("ddp"))


def mean_over_ranks(model, batches, **options):
    each = [naive_sam(model(), squared, batches(rank), rho=0.4, **options).gradients for rank in range(WORLD)]
    return [g / WORLD for g in added(*each)]


def check(ranks, name, expected, reductions=1):
    for rank in range(WORLD):
        for time in ranks[rank][name]:
            assert relative_error(time["grads"], expected) < TOL
            assert len(time["reductions"]) == reductions


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whole", {}),
        ("groups of two", {"m": 2}),
        ("one by one", {"m": 1}),
        ("bucket views", {"m": 2}),
        ("steps", {"m": 2, "steps": 2, "step_size": 0.6, "l2": 0.1}),
    ],
)
def test_gradient_is_the_mean_of_each_ranks_m_sam_reduced_once(ranks, name, options):
    expected = mean_over_ranks(mlp, data, **options)
    check(ranks, name, expected)


def test_whole_batch_of_a_rank_is_not_the_global_batch(ranks):
    both = tuple(torch.cat(column) for column in zip(data(0), data(1), strict=True))
    whole = naive_sam(mlp(), squared, both, rho=0.4).gradients
    assert relative_error(ranks[0]["whole"][0]["grads"], whole) > 1e-3


def test_ranks_of_a_process_group_climb_together_as_the_global_batch(ranks):
    both = tuple(torch.cat(column) for column in zip(data(0), data(1), strict=True))
    check(ranks, "together", naive_sam(mlp(), squared, both, rho=0.4).gradients)


def test_groups_of_a_process_group_span_the_ranks(ranks):
    """Group i holds examples 2i and 2i + 1 of each rank, the last one the fifth of each."""
    options = {"rho": 0.4, "steps": 2, "l2": 0.1}
    expected = [torch.zeros_like(p) for p in mlp().parameters()]
    for start, share in ((0, 0.4), (2, 0.4), (4, 0.2)):
        parts = zip(rows(data(0), start, start + 2), rows(data(1), start, start + 2), strict=True)
        group = tuple(torch.cat(part) for part in parts)
        expected = added(expected, naive_sam(mlp(), squared, group, **options).gradients, share)
    check(ranks, "groups together", expected)


def test_climb_of_uneven_ranks_is_weighted_by_their_examples(ranks):
    """DDP itself then takes the mean over ranks, whatever their sizes."""
    parts = [rows(data(0), 0, 4), rows(data(1), 0, 3)]
    both = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    e = naive_sam(mlp(), squared, both, rho=0.4, ascent="unnormalized").perturbations[0]
    w = [p.detach() for p in mlp().parameters()]
    each = [value_and_gradient(mlp(), squared, part, added(w, e))[1] for part in parts]
    check(ranks, "uneven, together", [g / WORLD for g in added(*each)])


def functional_gradient(batch, **options):
    module = mlp()
    return sam_gradient(in_halves(module), [*module.parameters()], batch, rho=0.4, **options).gradients


def test_functional_sam_of_ranks_is_their_mean_and_of_a_process_group_the_global_batchs(ranks):
    each = [functional_gradient(data(rank), m=2) for rank in range(WORLD)]
    check(ranks, "functional", [g / WORLD for g in added(*each)])
    both = tuple(torch.cat(column) for column in zip(data(0), data(1), strict=True))
    check(ranks, "functional, together", functional_gradient(both))


@pytest.mark.parametrize("name", RANDOM)
def test_ranks_that_climb_together_perturb_alike_at_random_whatever_their_seeds(ranks, name):
    (one, _), (other, _) = (rank["random, together"][name] for rank in ranks)
    assert len(one) == len(other)
    start = [p.detach() for p in mlp(dtype=RANDOM[name][0]).parameters()]
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(p, w) for p, w in zip(one[-1], start, strict=True))


@pytest.mark.parametrize("name", RANDOM)
def test_generators_of_ranks_that_climb_together_go_on_as_those_of_ranks_that_do_not(ranks, name):
    for rank in ranks:
        assert torch.equal(rank["random, together"][name][1], rank["random, apart"][name][1])
    assert not torch.equal(*(rank["random, together"][name][1] for rank in ranks))


@pytest.mark.parametrize("name", RANDOM)
def test_ranks_that_climb_by_themselves_perturb_at_random_by_themselves(ranks, name):
    one, other = (rank["random, apart"][name][0][-1] for rank in ranks)
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_ranks_that_differ_in_their_number_of_groups_are_refused(ranks):
    message = (
        "ValueError: every process of process_group must have the same number of groups, got between 1 and 2."
    )
    assert [rank["uneven groups, together"] for rank in ranks] == [message] * WORLD


def test_climb_on_another_batch_is_each_ranks_own(ranks):
    each = [
        naive_sam(mlp(), squared, data(r), rho=0.4, m=2, ascent_batch=data(r + 5)).gradients
        for r in range(WORLD)
    ]
    check(ranks, "another", [g / WORLD for g in added(*each)])


def test_accumulation_reduces_once_at_its_end(ranks):
    check(ranks, "accumulated", mean_over_ranks(mlp, lambda rank: rows(data(rank), 0, 4), m=2))


def test_batch_norm_uses_each_groups_own_statistics(ranks):
    check(ranks, "batch norm", mean_over_ranks(bn_conv, maps, m=2))
    assert [rank["batches"] for rank in ranks] == [[6, 6]] * WORLD


def test_static_graph_is_reduced_or_refused(ranks):
    """Left alone, torch reduces at the end of the first ``autograd.grad``: never the gradients."""
    found = ranks[0]["static graph"]
    if isinstance(found, str):
        assert found.startswith("ValueError:")
        assert "static_graph" in found
    else:
        check(ranks, "static graph", mean_over_ranks(mlp, data, m=2))


@pytest.mark.parametrize("last", [False, True])
def test_layer_that_one_group_uses_works_with_find_unused_parameters_or_is_refused(ranks, last):
    """The last forward decides what torch takes for unused; an earlier group may have used it."""
    name = f"unused, last={last}"
    found = ranks[0][name]
    if isinstance(found, str):
        assert found.startswith("ValueError:"), found
        assert "find_unused_parameters" in found
    else:
        check(ranks, name, mean_over_ranks(Skips, lambda rank: skipping(rank, last), m=2))


def test_single_process_gradient_is_the_same_function():
    module, batch = mlp(), data(0)
    found = sam_gradient(lambda *b: squared(module, *b), list(module.parameters()), batch, rho=0.4, m=2)
    assert relative_error(found.gradients, naive_sam(mlp(), squared, batch, rho=0.4, m=2).gradients) < TOL


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
