"""An exception in the second pass of one of two processes ends both. Also the script that each runs."""

import sys

import torch
from torch.distributed.device_mesh import init_device_mesh

from lowland import SAM

from ..processes import WORLD, begun, outlived, work
from .models import gpt, likelihood, sentences, sharded, shards


def scenarios(rank):
    """Rank 1 fails in its second pass, while the other one waits for its shards."""
    model, calls = sharded(gpt(), init_device_mesh("cpu", (WORLD,))), []
    before = shards(model)

    def loss(x, y):
        calls.append(None)
        if rank == 1 and len(calls) == 2:
            raise ZeroDivisionError("in the second pass")
        return likelihood(model, x, y)

    try:
        SAM(model, rho=0.4, m=2).backward(loss, *sentences(rank))
    finally:
        same = all(map(torch.equal, shards(model), before))
        clean = all(p.grad is None for p in model.parameters())
        print(f"shards as before: {same}, no gradient: {clean}", flush=True)
    yield "no end", None


def test_exception_in_one_process_ends_all_and_no_shard_has_changed(tmp_path):
    files = [tmp_path / f"said{rank}" for rank in range(WORLD)]
    processes = [begun("tests.sam.sharded.test_ending", rank, tmp_path, to) for rank, to in enumerate(files)]
    hang = outlived(processes, 120, waits=60)
    said = [file.read_text() for file in files]
    assert not hang, f"ranks {hang} hang: {said}"
    assert [process.returncode for process in processes] == [1] * WORLD
    assert "ZeroDivisionError: in the second pass" in said[1]
    assert all("shards as before: True, no gradient: True" in words for words in said), said
    assert "no end" not in "".join(said)


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
