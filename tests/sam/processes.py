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


def found_by_ranks(module, folder):
    """What each rank's run of ``python -m module`` found: :func:`work` there."""
    said = [folder / f"said{rank}" for rank in range(WORLD)]
    files = [(str(rank), str(folder / "init"), str(folder / "out")) for rank in range(WORLD)]
    processes = [
        begun([sys.executable, "-W", "ignore", "-m", module, *of_rank], to)
        for of_rank, to in zip(files, said, strict=True)
    ]
    hang = outlived(processes, LIMIT)
    words = [file.read_text() for file in said]
    last = [text.splitlines()[-1:] for text in words]
    assert not hang, f"ranks {hang} hang; the last that each has done: {last}"
    found = [folder / f"out{rank}" for rank in range(WORLD)]
    assert all(file.exists() for file in found), "\n".join(words)
    return [torch.load(file) for file in found]


def begun(command, to):
    """A process that writes what it says to a file."""
    with to.open("w") as said:
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=said, stderr=subprocess.STDOUT)


def outlived(processes, limit):
    """The ranks that are still at work after ``limit`` seconds; none where one has failed, and all end."""
    ends = time.monotonic() + limit
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                time.sleep(2.0)  # for what the others say of it
                return []
            if time.monotonic() > ends:
                return [rank for rank, process in enumerate(processes) if process.poll() is None]
            time.sleep(0.05)
        return []
    finally:
        for process in processes:
            process.kill()
            process.wait()


def work(scenarios, rank, init, out):
    """Runs ``scenarios(rank)``, pairs of a name and what was found."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{init}",
        rank=int(rank),
        world_size=WORLD,
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
