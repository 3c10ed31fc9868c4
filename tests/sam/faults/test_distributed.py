"""Data-parallel and sharded training: two gloo processes against one that computes both shares.

This file is also the script that each process runs.
"""

import sys
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowland import SAM, SAMOptimizer
from lowland.sam import DecoupledWeighted, Look, Weighted, Window

from ..naive import added, mlp, naive_sam, regression, relative_error, squared
from ..processes import WORLD, attempt, found_by_ranks, work
from .ways import closure_of, sgd

RHO = 0.4
TOL = 1e-12


def data(rank):
    return regression(10 + rank, examples=4)


def everything():
    return tuple(torch.cat(column) for column in zip(*map(data, range(WORLD)), strict=True))


def after_step(make, group=None, batch=None):
    """Gradients and reductions of a step in one of the ways below; the weights after a second one."""
    rank = dist.get_rank()
    batch = data(rank) if batch is None else batch
    reductions, module = [], mlp()
    ddp = DistributedDataParallel(module, process_group=group)
    ddp.register_comm_hook(reductions, count)
    step = make(ddp, batch)
    step()
    grads = [p.grad.clone() for p in module.parameters()]
    found = {"grads": grads, "reductions": len(reductions)}
    step()
    return {**found, "weights": [p.detach().clone() for p in module.parameters()]}


def count(reductions, bucket):
    reductions.append(bucket.index())
    return allreduce_hook(None, bucket)


def backward(**options):
    def make(ddp, batch):
        base = sgd(ddp, lr=0.1)
        if "decoupled" in options:
            rule = DecoupledWeighted(0.8, base, options["decoupled"])
            sam = SAM(ddp, rho=RHO, combine=rule)
        else:
            sam = SAM(ddp, rho=RHO, **options)

        def step():
            base.zero_grad()
            sam.backward(lambda *b: squared(ddp, *b), *batch)
            base.step()

        return step

    return make


def closure(known=True, rho=RHO, **options):
    def make(ddp, batch):
        base = sgd(ddp, lr=0.1)
        optimizer = SAMOptimizer(base, rho=rho, module=ddp if known else None, **options)
        return lambda: optimizer.step(closure_of(optimizer, lambda: squared(ddp, *batch)))

    return make


def two_steps(own):
    def make(ddp, batch):
        optimizer = SAMOptimizer(sgd(ddp, lr=0.1), rho=RHO)

        def step():
            optimizer.zero_grad()
            with ddp.no_sync() if own else nullcontext():
                squared(ddp, *batch).backward()
            optimizer.first_step(zero_grad=True)
            squared(ddp, *batch).backward()
            optimizer.second_step()

        return step

    return make


def scenarios(rank):
    """What each process runs, by name."""
    yield "backward", after_step(backward())
    yield "backward in pairs", after_step(backward(m=2))
    yield "backward together", after_step(backward(process_group=dist.group.WORLD))
    yield "backward together in fours", after_step(backward(process_group=dist.group.WORLD, m=4))
    yield "closure", after_step(closure())
    yield "two steps, own", after_step(two_steps(own=True))
    yield "closure, global", after_step(closure(known=False))
    yield "two steps, global", after_step(two_steps(own=False))
    yield "closure before a window", after_step(closure(rho=Window(RHO, start=5)))
    yield "closure, weighted", attempt(lambda: after_step(closure(combine=Weighted(0.8))))
    yield "closure, look", attempt(lambda: after_step(closure(combine=Look(2))))
    yield "decoupled, alone", attempt(lambda: after_step(backward(decoupled=None)))
    yield "decoupled", after_step(backward(decoupled=dist.group.WORLD))
    for name, shard in SHARDED.items():
        for user in USERS:
            yield f"{name}, {user.__name__}", sharded(shard, user)
    group = dist.new_group(timeout=timedelta(seconds=60))
    exact = (data(rank)[0], mlp()(data(rank)[0]).detach()) if rank == 0 else data(rank)
    yield "zero gradient on rank 0", attempt(lambda: after_step(closure(), group, exact))


def fully_sharded(module):
    for part in (module[0], module[2], module):
        fully_shard(part)
    return module


def fsdp(**options):
    return lambda module: FullyShardedDataParallel(module, device_id=torch.device("cpu"), **options)


SHARDED = {"FSDP": fsdp(), "FSDP, original params": fsdp(use_orig_params=True), "fully_shard": fully_sharded}


def by_sam(module, batch):
    SAM(module, rho=RHO).backward(lambda *b: squared(module, *b), *batch)


def by_bare_sam(module, batch):
    SAM(module.parameters(), rho=RHO).backward(lambda *b: squared(module, *b), *batch)


def by_optimizer(module, batch):
    optimizer = SAMOptimizer(sgd(module), rho=RHO, module=module)
    optimizer.step(closure_of(optimizer, lambda: squared(module, *batch)))


def by_bare_optimizer(module, batch):
    optimizer = SAMOptimizer(sgd(module), rho=RHO)
    optimizer.step(closure_of(optimizer, lambda: squared(module, *batch)))


USERS = (by_sam, by_bare_sam, by_optimizer, by_bare_optimizer)


def sharded(shard, user):
    """The whole gradient that a sharded module is left with, or the refusal in words."""
    module = shard(mlp())
    found = attempt(lambda: user(module, data(dist.get_rank())))
    if isinstance(found, str):
        return found
    pieces = [p.grad for p in module.parameters() if p.grad is not None and p.grad.numel()]
    pieces = [g.to_local() if hasattr(g, "to_local") else g for g in pieces]
    squares = torch.stack([g.square().sum() for g in pieces]).sum() if pieces else torch.zeros(()).double()
    dist.all_reduce(squares)
    return {"norm of the gradient": squares.sqrt()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    return found_by_ranks("tests.sam.faults.test_distributed", tmp_path_factory.mktemp("faults"))


def mean_over_ranks(**options):
    each = [naive_sam(mlp(), squared, data(rank), rho=RHO, **options).gradients for rank in range(WORLD)]
    return [g / WORLD for g in added(*each)]


def check(ranks, name, expected, reductions=1):
    for found in ranks:
        assert isinstance(found[name], dict), found[name]
        assert relative_error(found[name]["grads"], expected) < TOL
        assert found[name]["reductions"] == reductions
    assert all(torch.equal(a, b) for a, b in zip(*(found[name]["weights"] for found in ranks), strict=True))


def test_each_process_climbs_by_itself_and_the_gradient_is_reduced_once(ranks):
    """davda54 plain [run]; SAM, LookSAM, FriendlySAM of pytorch_optimizer, SSAM, unifiedsam, temperon [read].

    They reduce in both passes, so that m is the global batch.
    """
    check(ranks, "backward", mean_over_ranks())


def test_first_step_after_no_sync_climbs_by_itself(ranks):
    """davda54 with the recipe of its README [run]: m is the global batch all the same."""
    check(ranks, "two steps, own", mean_over_ranks())


def test_closure_of_a_known_module_climbs_by_itself(ranks):
    """atorch WSAM: m is per device in two steps, but global with a closure."""
    check(ranks, "closure", mean_over_ranks())


@pytest.mark.parametrize(("name", "reductions"), [("closure, global", 2), ("two steps, global", 2)])
def test_global_m_is_had_by_not_naming_the_module(ranks, name, reductions):
    """mlcommons and init2winit do so on purpose; here it is a choice: one process with all the data."""
    check(ranks, name, naive_sam(mlp(), squared, everything(), rho=RHO).gradients, reductions)


def test_m_does_not_change_with_the_number_of_processes(ranks):
    """None has an m that is invariant: pairs in two processes of four are pairs in one of eight."""
    check(ranks, "backward in pairs", naive_sam(mlp(), squared, everything(), rho=RHO, m=2).gradients)


def test_groups_may_be_larger_than_the_share_of_a_process(ranks):
    """None in PyTorch has groups that are larger than a device and smaller than the world.

    Two of each process are a group of four: the first halves of both shares, and then the second ones.
    """
    check(ranks, "backward together", naive_sam(mlp(), squared, everything(), rho=RHO).gradients)
    x, y = everything()
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    fours = naive_sam(mlp(), squared, (x[order], y[order]), rho=RHO, m=4).gradients
    check(ranks, "backward together in fours", fours)


def test_closure_that_does_not_climb_yet_is_reduced(ranks):
    """Our own: the first closure runs without reduction, and where rho is 0 it is the only one."""
    gradients = mean_over_ranks_plain()
    check(ranks, "closure before a window", gradients)


def mean_over_ranks_plain():
    each = [naive_sam(mlp(), squared, data(rank), rho=0.0).gradients for rank in range(WORLD)]
    return [g / WORLD for g in added(*each)]


def test_rank_with_a_zero_gradient_takes_part_in_the_reduction(ranks):
    """Our own: it climbs nowhere, calls the closure once, and the other ranks wait for it in their second."""
    for found in ranks:
        assert isinstance(found["zero gradient on rank 0"], dict), found["zero gradient on rank 0"]
    one, two = (found["zero gradient on rank 0"]["weights"] for found in ranks)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("closure, weighted", "combine must be None in a closure with DistributedDataParallel"),
        ("closure, look", "combine must be None in a closure with DistributedDataParallel"),
        ("decoupled, alone", "DecoupledWeighted must be given the process_group that trains together"),
    ],
)
def test_rules_that_would_give_every_process_another_step_are_refused(ranks, name, message):
    """Our own: g of the process beside the reduced gradient at w + e."""
    for found in ranks:
        assert isinstance(found[name], str), "refused"
        assert found[name].startswith(f"ValueError: {message}, got")


def test_decoupled_sharpness_is_averaged_over_the_processes(ranks):
    """atorch WSAM under DDP: the term outside the optimizer is no gradient that DDP would reduce."""
    w = [p.detach().clone() for p in mlp().parameters()]
    for _ in range(2):
        each = [naive_at(w, data(rank)) for rank in range(WORLD)]
        g = [t / WORLD for t in added(each[0].at_weights, each[1].at_weights)]
        ge = [t / WORLD for t in added(each[0].gradients, each[1].gradients)]
        w = added(added(w, g, -0.1), added(ge, g, -1.0), -0.1 * 0.8 / 0.2)
    for found in ranks:
        assert relative_error(found["decoupled"]["weights"], w) < TOL


def naive_at(w, batch):
    module = mlp()
    for p, value in zip(module.parameters(), w, strict=True):
        p.data = value.clone()
    return naive_sam(module, squared, batch, rho=RHO)


def whole_gradient_norm(group):
    """Of FSDP1's mean over ranks, each at the perturbation of its own or of the global gradient."""
    gradients = (
        mean_over_ranks() if group == "own" else naive_sam(mlp(), squared, everything(), rho=RHO).gradients
    )
    return torch.cat([g.flatten() for g in gradients]).norm()


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.parametrize("user", [user.__name__ for user in USERS])
def test_sharded_modules_are_refused_by_name_or_their_norms_are_right(ranks, name, user):
    """davda54 [run], composer, pytorch_optimizer: the norm under FSDP1 is that of the local shard.

    composer besides ignores ``ddp_sync=False`` there. Our own: if ``SAM`` is not told, no gradient arrives.
    """
    for found in ranks:
        result = found[f"{name}, {user}"]
        if isinstance(result, str):
            assert result.startswith("ValueError:"), result
            assert "FSDP" in result
        else:
            norms = [whole_gradient_norm("own"), whole_gradient_norm("global")]
            assert any(torch.isclose(result["norm of the gradient"], n, rtol=1e-10) for n in norms)


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
