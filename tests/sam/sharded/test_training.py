"""A language model trained in shards, saved by two ranks, continued by four and by one; replicas of shards.

This file is also the script that each process runs.
"""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import clip_grad_norm_

from lowland import SAM

from ..naive import naive_sam, relative_error
from ..processes import found_by_ranks, work
from .models import collectives, gpt, likelihood, sentences, sharded, shards, whole

STEPS, HALF, EXAMPLES, M = 50, 25, 8, 2
OPTIONS = {"rho": 0.1, "m": M}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-3)


def batch_of(step, rank=0, world=1):
    """A rank's examples of a step: the groups of M are the same, whoever has them."""
    own = EXAMPLES // world
    return tuple(t[rank * own : (rank + 1) * own] for t in sentences(100 + step, EXAMPLES))


def trained(model, optimizer, sam, steps, rank=0, world=1):
    """Steps with clipped gradients, as one writes them without shards."""
    for step in steps:
        optimizer.zero_grad()
        sam.backward(partial(likelihood, model), *batch_of(step, rank, world))
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def tensors_of(model, optimizer):
    """All that a checkpoint holds, by name; the optimizer's numbers come from the code."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    return {**model.state_dict(), **{k: v for k, v in state.items() if isinstance(v, torch.Tensor)}}


def saved(folder, model, optimizer):
    dcp.save(
        tensors_of(model, optimizer),
        storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
    )


def loaded(folder, model, optimizer, *, alone=False):
    """Fills a model and its optimizer, of which torch makes the state that is to be filled."""
    tensors = tensors_of(model, optimizer)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    set_optimizer_state_dict(
        model, optimizer, {**state, **{k: tensors[k] for k in state if k in tensors}}, options=options
    )
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})


def scenarios(rank):
    world, folder = dist.get_world_size(), Path(sys.argv[2]).parent.parent / "checkpoint"
    meshes = {"shards": init_device_mesh("cpu", (world,))}
    if world == 4:
        meshes["replicas"] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    for name, mesh in meshes.items():
        model = sharded(gpt(), mesh)
        optimizer, sam = adamw(model), SAM(model, **OPTIONS)
        if world == 2:
            trained(model, optimizer, sam, range(HALF), rank, world)
            saved(folder, model, optimizer)
            trained(model, optimizer, sam, range(HALF, STEPS), rank, world)
        else:
            loaded(folder, model, optimizer)
            trained(model, optimizer, sam, range(HALF, STEPS), rank, world)
        yield name, whole(model)
    if world == 4:
        yield "one step", one_step(meshes["replicas"], rank)


def one_step(mesh, rank):
    """Gradients and collectives of a step of replicas."""
    found = {}
    for name, options in {
        "plain": None,
        **{f"m={m}, l2={l2}": {"m": m, "l2": l2} for m in (None, 1, 2, 3) for l2 in (0.0, 0.1)},
        **{f"together, l2={l2}": {"l2": l2, "process_group": dist.group.WORLD} for l2 in (0.0, 0.1)},
    }.items():
        model = sharded(gpt(), mesh)
        before, loss, batch = shards(model), partial(likelihood, model), sentences(rank)
        model(batch[0])
        sam = None if options is None else SAM(model, rho=0.3, **options)
        with collectives(model) as seen:
            loss(*batch).backward() if sam is None else sam.backward(loss, *batch)
        same = all(map(torch.equal, shards(model), before))
        found[name] = same, whole(model, gradients=True), dict(seen.calls)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two ranks found, and where they saved."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "two").mkdir()
    return found_by_ranks("tests.sam.sharded.test_training", folder / "two", 2), folder


@pytest.fixture(scope="module")
def four(two):
    """What four ranks found, which continue from there."""
    _, folder = two
    (folder / "four").mkdir()
    return found_by_ranks("tests.sam.sharded.test_training", folder / "four", 4)


@pytest.fixture(scope="module")
def by_formula():
    """The weights after all steps, each by the formula."""
    model = gpt()
    optimizer = adamw(model)
    for step in range(STEPS):
        found = naive_sam(model, likelihood, batch_of(step), **OPTIONS)
        for p, g in zip(model.parameters(), found.gradients, strict=True):
            p.grad = g
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_fifty_steps_in_shards_are_those_of_the_whole_model(two, by_formula):
    for found in two[0]:
        assert relative_error(found["shards"], by_formula) < 1e-10


@pytest.mark.parametrize("mesh", ["shards", "replicas"])
def test_checkpoint_of_two_ranks_is_continued_by_four(four, by_formula, mesh):
    for found in four:
        assert relative_error(found[mesh], by_formula) < 1e-10


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_checkpoint_of_two_ranks_is_continued_by_one_process(two, by_formula):
    model = gpt()
    optimizer = adamw(model)
    loaded(two[1] / "checkpoint", model, optimizer, alone=True)
    trained(model, optimizer, SAM(model, **OPTIONS), range(HALF, STEPS))
    assert relative_error([p.detach() for p in model.parameters()], by_formula) < 1e-10
    assert {file.suffix for file in (two[1] / "checkpoint").iterdir()} == {".safetensors"}


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("m", [None, 1, 2, 3])
def test_replicas_find_the_mean_over_all_ranks(four, m, l2):
    each = [naive_sam(gpt(), likelihood, sentences(r), rho=0.3, m=m, l2=l2).gradients for r in range(4)]
    expected = [sum(g) / 4.0 for g in zip(*each, strict=True)]
    for found in four:
        same, grads, calls = found["one step"][f"m={m}, l2={l2}"]
        assert same
        assert relative_error(grads, expected) < 1e-12
        plain = found["one step"]["plain"][2]
        assert calls["reduce_scatter_single"] == plain["reduce_scatter_single"]
        axes = 2 * ((m is not None) + (l2 > 0.0))  # of the mesh, over which passes and terms are compared
        assert calls["all_reduce"] == plain["all_reduce"] + axes


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_replicas_are_not_counted_twice_in_the_norm_of_a_climb_together(four, l2):
    both = tuple(map(torch.cat, zip(*(sentences(r) for r in range(4)), strict=True)))
    expected = naive_sam(gpt(), likelihood, both, rho=0.3, l2=l2).gradients
    for found in four:
        same, grads, _ = found["one step"][f"together, l2={l2}"]
        assert same
        assert relative_error(grads, expected) < 1e-12


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
