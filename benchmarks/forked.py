"""Commands in processes of their own that need not import anything: forks of one that has trained."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from lowland.cli import main as lowland

TRAIN = (
    "train --dataset digits --frac_train 0.1 --model fc --model_width 4 --epochs 1 --batch_size 64 "
    "--sam_rho 0.1 --export_images --device cpu --threads 1 --quiet"
)


def warmed_up() -> None:
    """Imports, by training once, all that each fork would import else, for most of its time."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        said, sys.stdout = sys.stdout, nowhere
        try:
            code = lowland([*shlex.split(TRAIN), "--out", str(Path(folder) / "run")])
        finally:
            sys.stdout = said
    if code != 0:
        raise SystemExit(f"a run that was left alone failed with {code}.")


def begun(work: Callable[[], int]) -> int:
    """The process that does ``work``, and says nothing."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            code = work()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """The exit code of a process when it has ended; a signal's number, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def done(work: Callable[[], int]) -> int:
    """The exit code of ``work`` in a process of its own."""
    return ended(begun(work))
