"""An exception in one of two gloo processes ends both. This file is also the script that each runs."""

import sys

from torch.nn.parallel import DistributedDataParallel

from lowland import SAM

from .naive import bn_conv, squared, tensors
from .processes import WORLD, begun, outlived, work


def scenarios(rank):
    """Rank 1 fails in its second pass, while the other one waits for its gradient."""
    ddp, calls = DistributedDataParallel(bn_conv()), []

    def loss(x, y):
        calls.append(None)
        if rank == 1 and len(calls) == 2:
            raise ZeroDivisionError("in the second pass")
        return squared(ddp, x, y)

    SAM(ddp, rho=0.4, engine="loop").backward(loss, *tensors(rank, (4, 2, 5, 5), (4, 2, 2, 2)))
    yield "no end", None


def test_exception_in_one_process_ends_all(tmp_path):
    files = [tmp_path / f"said{rank}" for rank in range(WORLD)]
    processes = [begun("tests.sam.test_ending", rank, tmp_path, to) for rank, to in enumerate(files)]
    hang = outlived(processes, 60, waits=30)
    said = [file.read_text() for file in files]
    assert not hang, f"ranks {hang} hang: {said}"
    assert [process.returncode for process in processes] == [1] * WORLD
    assert "ZeroDivisionError: in the second pass" in said[1]
    assert "no end" not in "".join(said)


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
