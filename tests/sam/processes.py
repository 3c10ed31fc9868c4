"""Two gloo processes, each of which runs the scenarios of a test file that is also their script."""

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

WORLD = 2
LIMIT = 240
"""Seconds after which processes are said to hang."""


def found_by_ranks(module, folder, world=WORLD):
    """What each rank's run of ``python -m module`` found: :func:`work` there."""
    said = [folder / f"said{rank}" for rank in range(world)]
    processes = [begun(module, rank, folder, to, world) for rank, to in enumerate(said)]
    hang = outlived(processes, LIMIT)
    words = [file.read_text() for file in said]
    assert all(process.returncode <= 0 for process in processes), "\n".join(words)
    last = [text.splitlines()[-1:] for text in words]
    assert not hang, f"ranks {hang} hang; the last that each has done: {last}"
    return [torch.load(folder / f"out{rank}") for rank in range(world)]


def begun(module, rank, folder, to, world=WORLD):
    """A process that runs ``python -m module``, and what it says goes to a file."""
    command = [sys.executable, "-W", "ignore", "-m", module, str(rank)]
    command += [str(folder / "init"), str(folder / "out"), str(world)]
    with to.open("w") as said:
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=said, stderr=subprocess.STDOUT)


def outlived(processes, limit, waits=2.0):
    """The ranks that are at work after ``limit`` seconds, or when one failed a while ago; all then end."""
    ends = time.monotonic() + limit
    try:
        while time.monotonic() < ends and any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                ends = min(ends, time.monotonic() + waits)
            time.sleep(0.05)
        return [rank for rank, process in enumerate(processes) if process.poll() is None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def work(scenarios, rank, init, out, world=WORLD):
    """Runs ``scenarios(rank)``, pairs of a name and what was found."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{init}",
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=LIMIT + 60),
    )
    found = {}
    for name, result in scenarios(int(rank)):
        print(name, flush=True)
        found[name] = result
    torch.save(found, f"{out}{rank}")


def attempt(run):
    """The results, or the error in words."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
