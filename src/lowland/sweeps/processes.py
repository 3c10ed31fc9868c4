"""Tasks in processes of their own on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from lowland.deep import Interrupted
from lowland.sweeps.engine import Failures, Watch, attempted
from lowland.sweeps.task import Task
from lowland.sweeps.work import Work

_POLL = 0.2


@dataclass(frozen=True)
class Processes:
    """Several tasks at once, each in a process of its own.

    Attributes:
        jobs: How many at once.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.deep import Place
        >>> from lowland.sweeps import Processes, Store, carried_out
        >>> class Told:  # a watch
        ...     def on_start(self, task):
        ...         print("begun")
        ...     def on_progress(self, task, share):
        ...         print(f"{share:.0%}", end=" ")
        ...     def on_end(self, task, failure, seconds):
        ...         print("failed" if failure else "done")
        >>> tasks = []  # up to four of them at once
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     carried_out(tasks, Store(Path(folder)), Processes(jobs=4), place=Place(), watch=Told())
        {}
    """

    jobs: int

    def opened(self) -> AbstractContextManager[object]:
        """A block that shares nothing."""
        return nullcontext()

    def __call__(
        self, work: Work, tasks: Sequence[Task], watch: Watch, should_stop: Callable[[], bool]
    ) -> Failures:
        """Carries out all, as :class:`~lowland.sweeps.Engine` says.

        Returns:
            Why each task that failed did, by its name.

        Raises:
            Interrupted: If it was asked to stop.
        """
        failures: Failures = {}
        waiting = list(tasks)[::-1]
        workers = [_Worker(work) for _ in range(min(self.jobs, len(waiting)))]
        stopping = False
        try:
            while waiting or any(worker.task for worker in workers):
                if should_stop() and not stopping:
                    stopping = True
                    waiting.clear()
                    for worker in workers:
                        worker.stop()
                for worker in workers:
                    if worker.task is None and waiting:
                        worker.begin(waiting.pop())
                        watch.on_start(worker.current)
                busy = [worker for worker in workers if worker.task]
                ready = wait([worker.connection for worker in busy], _POLL)
                for worker in (worker for worker in busy if worker.connection in ready):
                    worker.hear(watch, failures)
        finally:
            for worker in workers:
                worker.close()
        if stopping:
            raise Interrupted
        return failures


class _Worker:
    """A process that carries out one task after the other."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.task: Task | None = None
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        with _blocked():
            self.process.start()
        theirs.close()

    @property
    def current(self) -> Task:
        assert self.task is not None
        return self.task

    def begin(self, task: Task) -> None:
        if not self.process.is_alive():
            self.connection.close()
            self._spawn()
        self.task, self.started = task, time.monotonic()
        self.connection.send(task)

    def stop(self) -> None:
        if self.task is not None:
            with contextlib.suppress(OSError):  # it has just died, which is heard next
                self.connection.send("stop")

    def hear(self, watch: Watch, failures: Failures) -> None:
        """Takes the next message of the process."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            kind, value = "end", f"its process ended with exit code {self.process.exitcode}."
            self.connection.close()
            self._spawn()
        if kind == "progress":
            watch.on_progress(self.current, value)
            return
        if kind == "end":
            watch.on_end(self.current, value, time.monotonic() - self.started)
            if value is not None:
                failures[self.current.name] = value
        self.task = None

    def close(self) -> None:
        """Ends the process; what it was doing goes on from its last checkpoint."""
        self.connection.close()
        self.process.join(10.0 if self.task is None else 0.0)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """A process that begins here never hears Ctrl-C or a closed terminal, not even while it imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection[Any, Any], work: Work) -> None:
    """Carries out tasks until the other end is closed. Ctrl-C and a closed terminal are its business."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        if task == "stop":  # came when there was nothing left to stop
            continue
        try:
            failure = attempted(work, task, _Throttled(connection), connection.poll)
            message = ("end", failure)
        except Interrupted:
            message = ("stopped", None)
        try:
            connection.send(message)
        except OSError:
            return


class _Throttled:
    """Sends progress a few times a second."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection, self._sent = connection, 0.0

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now - self._sent >= _POLL:
            self._sent = now
            try:
                self._connection.send(("progress", share))
            except OSError:  # nobody is there to hear it any more
                raise Interrupted from None
