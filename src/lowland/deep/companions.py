"""Other processes of this machine that train a run along with this one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch.distributed

from lowland.deep.config import TrainConfig
from lowland.deep.processes import ProcessLost, in_group, is_lost, ranks
from lowland.errors import InputError

if TYPE_CHECKING:
    from lowland.deep.launch import Place

TCPStore: Any = vars(torch.distributed)["TCPStore"]  # which torch's types do not export

_HOST = "127.0.0.1"
_POLL = 0.05
_PATIENCE = 10.0
"""Seconds that a process is given to end by itself."""


@contextmanager
def companions(
    config: TrainConfig, path: Path | None, place: Place, checkpoint_every: float | None
) -> Iterator[None]:
    """A block in which as many processes train the run as ``place`` says, this one as the first of them.

    Args:
        config: What they train.
        path: The run's directory.
        place: Where, and how many.
        checkpoint_every: Seconds between checkpoints.

    Raises:
        InputError: If one of them ends before its work is done.
    """
    if place.processes == 1 or ranks().several:
        yield
        return
    store = TCPStore(_HOST, 0, place.processes, is_master=True, wait_for_workers=False)
    told = {
        "port": store.port,
        "config": config.to_dict(),
        "path": None if path is None else str(path.absolute()),
        "place": {k: v if v is None else str(v) for k, v in dataclasses.asdict(place).items()},
        "checkpoint_every": checkpoint_every,
        "sys_path": sys.path,
    }
    others: list[_Companion] = []
    try:
        for rank in range(1, place.processes):
            others.append(_Companion(rank, told))
        _await(others, store)
        with in_group(store, 0, place.processes):
            try:
                yield
            except RuntimeError as error:
                if not (isinstance(error, ProcessLost) or is_lost(error)):
                    raise
                raise InputError(
                    f"all {place.processes} processes of a run must last until it ends, but one has ended: "
                    f"{_reasons(others)}"
                ) from None
    finally:
        for other in others:
            other.end()


class _Companion:
    """A process that trains along.

    Args:
        rank: Its number.
        told: What it is told, beside that.
    """

    def __init__(self, rank: int, told: Mapping[str, Any]) -> None:
        self.rank = rank
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env=os.environ | {"LOCAL_RANK": str(rank)},
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as line:  # one that is gone is seen to be
            line.write(json.dumps({"rank": rank, **told}).encode())

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def reason(self) -> str:
        """The last line that it has said, or its exit code."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def end(self) -> None:
        """Waits for the process, which is killed if it does not end."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


def _await(others: Sequence[_Companion], store: Any) -> None:
    """Waits until all are there, or one is gone."""
    while not store.check([_ready(other.rank) for other in others]):
        if any(other.has_ended for other in others):
            raise InputError(f"a process of a run must begin to train, but one has ended: {_reasons(others)}")
        time.sleep(_POLL)


def _reasons(others: Sequence[_Companion]) -> str:
    deadline = time.monotonic() + _PATIENCE
    while not any(other.has_ended for other in others) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return next((other.reason() for other in others if other.has_ended), "it does not answer.")


def _ready(rank: int) -> str:
    return f"lowland/ready/{rank}"


def _train_along(told: dict[str, Any]) -> None:
    """What a companion does, until the first process of the run has ended."""
    from lowland.deep.functions import on_path
    from lowland.deep.launch import Place, launch
    from lowland.deep.training import Control, Interrupted

    given = told["place"]
    place = Place(
        given["device"],
        None if given["data_dir"] is None else Path(given["data_dir"]),
        None if given["threads"] is None else int(given["threads"]),
        None if given["directory"] is None else Path(given["directory"]),
        int(given["processes"]),
    )
    if place.directory is not None:
        on_path(place.directory)
    store = TCPStore(_HOST, told["port"], place.processes, is_master=False, wait_for_workers=False)
    store.set(_ready(told["rank"]), "")
    path = None if told["path"] is None else Path(told["path"])
    control = Control(checkpoint_every=told["checkpoint_every"])
    told_by_the_first = suppress(InputError, Interrupted)
    with in_group(store, told["rank"], place.processes), told_by_the_first:
        launch(TrainConfig.from_dict(told["config"]), path, place, control)


def main() -> None:
    """Trains along with the process that has started this one, as it is told on its standard input."""
    for name in ("SIGINT", "SIGHUP"):  # are that process's business
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    told = json.load(sys.stdin)
    sys.path[:] = told["sys_path"]
    _train_along(told)
