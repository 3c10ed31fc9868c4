"""m-SAM under DistributedDataParallel: two gloo processes against one process that computes both shares.

This file is also the script that each process runs.
"""

import sys
from functools import partial
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms import Join
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lowland import SAM, Unnormalized, sam_gradient, sharpness
from lowland.sam import Functional, Random, RandomSubset, examples_scale

from .naive import (
    Skips,
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


def of_ddp(batch, *, by_examples=False, **options):
    """Steps of a SAM that is given the wrapped module."""

    def steps(ddp):
        scale = examples_scale(len(batch[0])) if by_examples else 1.0
        SAM(ddp, rho=0.4, **options).backward(lambda *b: squared(ddp, *b), *batch, scale=scale)

    return steps


def of_bare(batch, **options):
    """Steps of a SAM that is given the bare module, while its loss runs the wrapped one."""

    def steps(ddp):
        SAM(ddp.module, rho=0.4, **options).backward(lambda *b: squared(ddp, *b), *batch)

    return steps


def of_objective(batch, **options):
    """Steps of a trainer that calls ``backward`` itself."""

    def steps(ddp):
        SAM(ddp.module, rho=0.4, **options).objective(lambda *b: squared(ddp, *b), *batch).backward()

    return steps


WAYS = {"wrapped": of_ddp, "bare": of_bare, "objective": of_objective}


def idle(rank):
    """Examples that the extra layer of no process sees."""
    x, y = regression(30 + rank, examples=4)
    return -x.abs(), y


FACTORS = {"zero": 0.0, "overflow": float("inf")}


def unequal(rank):
    """A gradient of rank 1 that is zero or not finite, with which its climb ends early; then another one."""
    for (name, factor), engine in product(FACTORS.items(), ("loop", "batched")):
        ddp = DistributedDataParallel(bn_conv())
        sam, found = SAM(ddp, rho=0.4, engine=engine), []
        for times in (factor if rank == 1 else 1.0, 1.0):
            ddp.zero_grad()
            sam.backward(lambda *b, ddp=ddp, times=times: times * squared(ddp, *b), *maps(rank))
            found.append([p.grad.clone() for p in ddp.parameters()])
        yield f"{name}, {engine}", found


def joined(rank):
    """Rank 1 has no batch left in the last step."""
    for engine in ("loop", "batched"):
        ddp = DistributedDataParallel(bn_conv())
        sam = SAM(ddp, rho=0.4, m=2, engine=engine)
        found = []
        with Join([ddp]):
            for _ in range(3 - rank):
                ddp.zero_grad()
                sam.backward(lambda *b, ddp=ddp: squared(ddp, *b), *maps(rank))
                found.append([p.grad.clone() for p in ddp.parameters()])
        yield f"joined, {engine}", found


def with_statistics_of(rank):
    module = bn_conv().eval()
    for name, buffer in module.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(rank)) + 0.5)
    return module


def in_evaluation(rank):
    """Batch norm by its running statistics, which DDP takes from rank 0 before the first pass."""
    found = {}
    for engine in ("loop", "batched"):
        ddp = DistributedDataParallel(with_statistics_of(rank), init_sync=False)
        SAM(ddp, rho=0.4, m=1, engine=engine).backward(lambda *b, ddp=ddp: squared(ddp, *b), *maps(rank))
        buffers = [b.clone() for b in ddp.buffers()]
        found[engine] = [p.grad.clone() for p in ddp.parameters()], buffers
    return found


def recorded(rank):
    ddp = DistributedDataParallel(bn_conv())
    sam = SAM(ddp, rho=0.4, m=1, engine="batched", capture="replay")
    found = []
    for _ in range(6):
        ddp.zero_grad()
        sam.backward(lambda *b: squared(ddp, *b), *maps(rank))
        found.append([p.grad.clone() for p in ddp.parameters()])
    return found, sam.captures.replayed


def refused(rank):
    batch, ddp = data(rank), DistributedDataParallel(mlp())
    together = {"process_group": dist.group.WORLD}

    def step(sam, batch=batch, module=ddp):
        sam.backward(lambda *b: squared(module, *b), *batch)

    yield "m above the batch", attempt(lambda: step(SAM(ddp, rho=0.4, m=6)))
    sam = SAM(ddp, rho=0.4, m=4)
    step(sam)
    yield "a smaller batch at the end", attempt(lambda: step(sam, rows(batch, 0, 3)))
    yield "odd m", attempt(lambda: step(SAM(ddp, rho=0.4, m=3, **together)))
    yield "a part", attempt(lambda: step(SAM(ddp.module[2], rho=0.4)))
    with Join([ddp]):
        yield "joined", attempt(lambda: step(SAM(ddp, rho=0.4, **together)))
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(bn_conv())
    yield "SyncBatchNorm", attempt(lambda: step(SAM(synchronized, rho=0.4), maps(rank), synchronized))
    ddp.mixed_precision = object()
    yield "mixed precision", attempt(lambda: step(SAM(ddp, rho=0.4)))


def collectives(rank):
    """All-reduces of a climb of two steps in two groups that processes make together."""
    called, own = [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        called.append(tensor.numel())
        return own(tensor, *args, **kwargs)

    module = mlp()
    dist.all_reduce = counted
    try:
        sam = SAM(module, rho=0.4, m=4, steps=2, process_group=dist.group.WORLD)
        sam.backward(lambda *b: squared(module, *b), *rows(data(rank), 0, 4))
    finally:
        dist.all_reduce = own
    return called


def after_an_error(rank):
    """Every process fails in its second pass, and then makes a step."""
    ddp = DistributedDataParallel(bn_conv())
    sam, calls = SAM(ddp, rho=0.4, engine="loop"), []

    def loss(*b):
        calls.append(None)
        if len(calls) == 2:
            raise ZeroDivisionError
        return squared(ddp, *b)

    said = attempt(lambda: sam.backward(loss, *maps(rank)))
    left = [name for name in vars(ddp) if name in ("_pre_forward", "_post_forward")]
    sam.backward(loss, *maps(rank))
    return said, left, [p.grad.clone() for p in ddp.parameters()]


def with_a_teacher(rank):
    """A module that SAM does not train, and then is trained itself."""
    student, teacher = (DistributedDataParallel(mlp(i), static_graph=True) for i in (0, 1))

    def loss(x, y):
        with torch.no_grad():
            towards = teacher(x)
        return squared(student, x, y) + (student(x) - towards).square().mean()

    sam = SAM(student, rho=0.4, m=2)
    for _ in range(3):
        student.zero_grad()
        sam.backward(loss, *data(rank))
    squared(teacher, *data(rank)).backward()
    return [p.grad.clone() for p in teacher.parameters()]


def measured(rank):
    """Measures of a wrapped module and of what is in it; rank 1 takes part in none."""
    ddp, found = DistributedDataParallel(bn_conv()), []
    for net in (ddp, ddp.module) if rank == 0 else ():
        of = partial(squared, net), [*net.parameters()], maps(0)
        worst = sharpness.worst_case(*of, rho=0.1, m=2, module=net)
        one_step = sharpness.one_step_sharpness(*of, rho=0.1, m=2, module=net)
        curvature = sharpness.hessian_eigenvalues(*of, module=net).values
        found.append([worst.value, one_step.value, float(curvature[0])])
    return found


class Doubled(DistributedDataParallel):
    """Has a forward pass of its own."""

    def forward(self, *args):
        return 2.0 * super().forward(*args)


def passes_of_a_subclass(rank):
    ddp = Doubled(mlp())
    SAM(ddp, rho=0.4, m=2).backward(lambda *b: squared(ddp, *b), *data(rank))
    return [p.grad.clone() for p in ddp.parameters()]


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
    for engine, (name, steps) in product(("loop", "batched"), WAYS.items()):
        make = partial(steps, engine=engine)
        yield (
            f"{engine}, static graph, {name}",
            attempt(lambda make=make: results_of(mlp(), make(batch, m=1), static_graph=True)),
        )
        for last in (False, True):
            given = make(skipping(rank, last), m=2)
            unused = partial(results_of, Skips(), given, find_unused_parameters=True)
            yield f"{engine}, unused, last={last}, {name}", attempt(unused)
        uneven = rows(maps(rank), 0, 5 - rank)
        yield f"{engine}, uneven groups, {name}", attempt(partial(results_of, bn_conv(), make(uneven, m=1)))
    both = {"static_graph": True, "find_unused_parameters": True}
    yield "static graph, unused", attempt(lambda: results_of(mlp(), of_ddp(batch, m=1), **both))
    yield "nobody uses it", results_of(Skips(), of_ddp(idle(rank)), find_unused_parameters=True)
    yield from unequal(rank)
    yield from joined(rank)
    yield "running statistics of rank 0", in_evaluation(rank)
    yield "recorded", recorded(rank)
    yield from refused(rank)
    yield "collectives", collectives(rank)
    yield "by examples", results_of(mlp(), of_ddp(rows(batch, 0, 5 - 2 * rank), m=1, by_examples=True))
    yield "after an error", after_an_error(rank)
    yield "a teacher", with_a_teacher(rank)
    yield "measured by rank 0 alone", measured(rank)
    yield "subclass", passes_of_a_subclass(rank)


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
    """Of four: group i holds examples 2i and 2i + 1 of each rank, the last one the fifth of each."""
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_static_graph_is_that_of_one_pass(ranks, engine, way):
    """Left alone, torch reduces at the end of the first ``autograd.grad``: never the gradients."""
    check(ranks, f"{engine}, static graph, {way}", mean_over_ranks(mlp, data, m=1))


def test_static_graph_looks_for_no_unused_parameters(ranks):
    check(ranks, "static graph, unused", mean_over_ranks(mlp, data, m=1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("last", [False, True])
def test_layer_that_one_group_uses_is_reduced_with_find_unused_parameters(ranks, engine, last, way):
    """Left alone, the last forward decides what torch takes for unused; an earlier group may have used it."""
    expected = mean_over_ranks(Skips, lambda rank: skipping(rank, last), m=2)
    check(ranks, f"{engine}, unused, last={last}, {way}", expected)


def test_layer_that_no_process_uses_has_no_gradient(ranks):
    expected = mean_over_ranks(Skips, idle)
    for found in ranks:
        grads = found["nobody uses it"][0]["grads"]
        assert [g is None for g in grads] == [False] * 4 + [True] * 4
        assert relative_error(grads[:4], expected[:4]) < TOL


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_ranks_whose_numbers_of_groups_differ_do_not_wait_for_each_other(ranks, engine, way):
    """With batch norm, DDP's defaults broadcast buffers in every forward pass: here once a call."""
    expected = mean_over_ranks(bn_conv, lambda rank: rows(maps(rank), 0, 5 - rank), m=1)
    check(ranks, f"{engine}, uneven groups, {way}", expected)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_rank_with_nowhere_to_climb_does_not_make_others_wait(ranks, engine):
    climbing = naive_sam(bn_conv(), squared, maps(0), rho=0.4).gradients
    for found in ranks:
        first, second = found[f"zero, {engine}"]
        assert relative_error(first, [g / WORLD for g in climbing]) < TOL
        assert relative_error(second, mean_over_ranks(bn_conv, maps)) < TOL


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_overflow_of_one_rank_reaches_all_and_the_next_step_is_right(ranks, engine):
    for found in ranks:
        first, second = found[f"overflow, {engine}"]
        assert not any(g.isfinite().any() for g in first)
        assert relative_error(second, mean_over_ranks(bn_conv, maps)) < TOL


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_join_divides_by_the_ranks_that_have_a_batch(ranks, engine):
    alone = naive_sam(bn_conv(), squared, maps(0), rho=0.4, m=2).gradients
    both = mean_over_ranks(bn_conv, maps, m=2)
    first, second = (found[f"joined, {engine}"] for found in ranks)
    assert [relative_error(grads, both) < TOL for grads in (*first[:2], *second)] == [True] * 4
    assert relative_error(first[2], [g / WORLD for g in alone]) < TOL  # DDP divides by all by default


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_all_passes_see_the_statistics_of_rank_0(ranks, engine):
    def at(rank):
        module = with_statistics_of(0)
        return naive_sam(module, squared, maps(rank), rho=0.4, m=1).gradients

    expected = [g / WORLD for g in added(*map(at, range(WORLD)))]
    for found in ranks:
        grads, buffers = found["running statistics of rank 0"][engine]
        assert relative_error(grads, expected) < TOL
        assert all(map(torch.equal, buffers, with_statistics_of(0).buffers()))


def test_replayed_steps_are_reduced(ranks):
    expected = mean_over_ranks(bn_conv, maps, m=1)
    for found in ranks:
        grads, replayed = found["recorded"]
        assert replayed > 2
        assert [relative_error(g, expected) < TOL for g in grads] == [True] * 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "m above the batch",
            "m must be at most the 5 examples of a batch of this process, or process_group must be given, "
            "with which processes climb together and m counts the examples of all, got m=6.",
        ),
        (
            "a part",
            "params must hold all 4 parameters that DistributedDataParallel reduces, unless it has "
            "find_unused_parameters=True, got 2: perturb= names those to perturb.",
        ),
        ("joined", "process_group must be None inside Join, got one: a climb together needs them all."),
        (
            "odd m",
            "m must be a multiple of the 2 processes of process_group, which share each group out, got 3.",
        ),
        (
            "SyncBatchNorm",
            "SyncBatchNorm, whose passes wait for those of other processes, must be used with process_group, "
            "so that they climb together, got None.",
        ),
        (
            "mixed precision",
            "DistributedDataParallel must have mixed_precision=None here, got one: use torch.autocast.",
        ),
    ],
)
def test_what_processes_cannot_do_together_is_refused(ranks, name, message):
    assert [found[name] for found in ranks] == [f"ValueError: {message}"] * WORLD


def test_last_batch_may_have_fewer_examples_than_m(ranks):
    assert [found["a smaller batch at the end"] for found in ranks] == [None] * WORLD


def test_climb_of_all_is_one_reduction_a_step(ranks):
    size = sum(p.numel() for p in mlp().parameters())
    for found in ranks:  # numbers and sizes of groups, and each gradient with the examples' number
        assert found["collectives"] == [4, *[size + 1] * 4]


def test_examples_scale_makes_the_mean_over_all_examples(ranks):
    shares = [rows(data(rank), 0, 5 - 2 * rank) for rank in range(WORLD)]
    both = tuple(torch.cat(column) for column in zip(*shares, strict=True))
    check(ranks, "by examples", naive_sam(mlp(), squared, both, rho=0.4, m=1).gradients)


def test_modules_are_what_they_were_after_an_error(ranks):
    for found in ranks:
        said, left, grads = found["after an error"]
        assert said == "ZeroDivisionError: "
        assert left == []
        assert relative_error(grads, mean_over_ranks(bn_conv, maps)) < TOL


def test_a_module_that_is_not_trained_is_left_to_its_own_training(ranks):
    each = [naive_sam(mlp(1), squared, data(rank), rho=0.0).gradients for rank in range(WORLD)]
    for found in ranks:
        assert relative_error(found["a teacher"], [g / WORLD for g in added(*each)]) < TOL


def test_a_measure_waits_for_no_other_process(ranks):
    wrapped, bare = ranks[0]["measured by rank 0 alone"]
    assert wrapped == pytest.approx(bare, rel=1e-9)
    assert wrapped[0] > 0.0


def test_forward_pass_of_a_subclass_is_run(ranks):
    def doubled(module, x, y):
        return squared(lambda x: 2.0 * module(x), x, y)

    each = [naive_sam(mlp(), doubled, data(rank), rho=0.4, m=2).gradients for rank in range(WORLD)]
    for found in ranks:
        assert relative_error(found["subclass"], [g / WORLD for g in added(*each)]) < TOL


def test_single_process_gradient_is_the_same_function():
    module, batch = mlp(), data(0)
    found = sam_gradient(lambda *b: squared(module, *b), list(module.parameters()), batch, rho=0.4, m=2)
    assert relative_error(found.gradients, naive_sam(mlp(), squared, batch, rho=0.4, m=2).gradients) < TOL


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
