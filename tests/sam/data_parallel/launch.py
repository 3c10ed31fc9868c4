"""Processes of a launcher of the user's, each of which runs the scenarios of a test file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..naive import bits, relative_error

WORLD, TOL = 2, 1e-12
LIMIT = 150
"""Seconds until it is said where the processes hang."""

ROOT = Path(__file__).parents[3]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORLD), "-m"]


def found_by_ranks(commands, folder):
    """What each rank found, after ``python *command`` for each of ``commands``: ``work`` there."""
    log = folder / "log"
    with log.open("w") as output:
        processes = [_started(command, output, environment) for command, environment in commands]
        try:
            codes = [process.wait(timeout=LIMIT) for process in processes]
        except subprocess.TimeoutExpired:
            codes = None
        finally:
            for process in processes:
                _ended(process)
    text = log.read_text()
    if codes is None:
        pytest.fail(f"the processes hang after {LIMIT} seconds: {_begun(folder)}.\n{text}")
    assert codes == [0] * len(codes), f"{_begun(folder)}\n{text}"
    return [torch.load(folder / f"found{rank}") for rank in range(WORLD)]


def of_all(ranks, name):
    """What all ranks found in a scenario, if there was no error."""
    found = [each[name] for each in ranks]
    errors = [each for each in found if isinstance(each, str)]
    assert not errors, errors
    return found


def check(ranks, name, expected):
    """Whether ranks have the weights ``expected``, alike bit for bit, and their buffers, or those of one."""
    weights, buffers, *_ = zip(*of_all(ranks, name), strict=True)
    assert len({tuple(map(bits, w)) for w in weights}) == 1, "ranks have the same weights, bit for bit"
    assert relative_error(weights[0], expected[0]) < TOL
    for own, of_truth in zip(buffers, expected[1] * (WORLD // len(expected[1])), strict=True):
        for b, value in zip(own, of_truth, strict=True):
            assert torch.allclose(b, value, rtol=1e-12, atol=1e-14)


def _started(command, output, environment):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment},
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _ended(process):
    """Ends a launcher with the processes that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _begun(folder):
    files = {rank: folder / f"begun{rank}" for rank in range(WORLD)}
    at = {rank: file.read_text() if file.exists() else "the start" for rank, file in files.items()}
    return ", ".join(f"rank {rank} in '{name}'" for rank, name in at.items())


def work(scenarios, rank, folder):
    """Runs ``scenarios``, functions by name, in a process: each finds something, or an error in words."""
    torch.set_num_threads(1)
    found = {}
    for name, scenario in scenarios.items():
        (Path(folder) / f"begun{rank}").write_text(name)
        try:
            found[name] = scenario()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, Path(folder) / f"found{rank}")
    (Path(folder) / f"begun{rank}").write_text("the end")


def state_of(module):
    """Weights and buffers."""
    return [p.detach().clone() for p in module.parameters()], [b.clone() for b in module.buffers()]
