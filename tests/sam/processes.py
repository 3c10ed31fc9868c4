"""Two gloo processes, each of which runs the scenarios of a test file that is also their script."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

WORLD = 2


def found_by_ranks(module, folder):
    """What each rank's run of ``python -m module`` found: :func:`work` there."""
    command = [sys.executable, "-W", "ignore", "-m", module]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "init"), str(folder / "out")],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = [folder / f"out{rank}" for rank in range(WORLD)]
    assert all(file.exists() for file in found), "\n".join(outputs)
    return [torch.load(file) for file in found]


def work(scenarios, rank, init, out):
    """Runs ``scenarios(rank)``, pairs of a name and what was found."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{init}",
        rank=int(rank),
        world_size=WORLD,
        timeout=timedelta(seconds=300),
    )
    torch.save(dict(scenarios(int(rank))), f"{out}{rank}")


def attempt(run):
    """The results, or the error in words."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
