"""Tasks on Ray: in workers on this machine, or on the machines of a cluster."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowland.deep import Interrupted
from lowland.errors import InputError
from lowland.extras import needs
from lowland.sweeps.engine import Failures, Watch, attempted
from lowland.sweeps.parcel import packed, swept, unpacked
from lowland.sweeps.task import Store, Task
from lowland.sweeps.work import Work

with needs("ray", "ray"):
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

_POLL = 0.2
_TOLD_EVERY = 1.0
"""Seconds between messages of a worker."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ray:
    """Tasks on Ray. Runs and checkpoints travel through its object store: machines share no file system.

    A task whose worker ends (killed, out of memory, its machine gone) is tried again from its newest
    checkpoint. Ray pickles code and configs between its own processes: who can reach a cluster can run code
    on it.

    Attributes:
        address: Of a cluster, ``"auto"`` for the one that this machine belongs to; ``None`` starts a Ray on
            this machine for the time of the call.
        jobs: How many at once, of a Ray that is started here; one per core if ``None``.
        cpus_per_task: Cores that a task is given.
        gpus_per_task: GPUs that a task is given; it sees no others.
        retries: How often a task whose worker ended is tried again.
        shared_store: Whether all machines see the store's path, so that nothing needs to travel.
        checkpoint_every: Seconds between the times when a running task's files travel.
    """

    address: str | None = None
    jobs: int | None = None
    cpus_per_task: float = 1.0
    gpus_per_task: float = 0.0
    retries: int = 2
    shared_store: bool = False
    checkpoint_every: float = 20.0

    def __call__(
        self, work: Work, tasks: Sequence[Task], watch: Watch, should_stop: Callable[[], bool]
    ) -> Failures:
        """See :class:`~lowland.sweeps.Engine`."""
        swept(work.store.path)
        return _Submitted(self, work, watch, should_stop).carried_out(tasks)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """A block in which Ray is there, or the cluster is connected; inside another one, that one's.

        Raises:
            InputError: If there is no cluster at ``address``.
        """
        if ray.is_initialized():
            yield
            return
        with ExitStack() as stack:
            options: dict[str, Any] = {"address": self.address}
            if self.address is None:
                folder = tempfile.mkdtemp(prefix="lowland-ray-")
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                cpus = self.cpus_per_task * (self.jobs or os.cpu_count() or 1)
                here = {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}
                options = {"address": "local", **here}  # also where RAY_ADDRESS names a cluster
            else:
                _require_cluster(self.address)
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            before = signal.getsignal(signal.SIGTERM)
            stack.callback(signal.signal, signal.SIGTERM, before)
            try:
                ray.init(log_to_driver=False, configure_logging=False, **options)
            except ConnectionError as error:
                raise InputError(
                    f"address must be that of a Ray cluster, got {self.address!r}: {_first_line(error)}"
                ) from None
            stack.callback(ray.shutdown)
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in place
            yield


def _require_cluster(address: str) -> None:
    """Refuses a place where nothing answers; Ray would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if address == "auto" or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"address must be that of a Ray cluster, got {address!r}: {error}.") from None


@dataclass
class _Submitted:
    """Tasks that were submitted.

    Attributes:
        waiting: Tasks, by the reference to what they will return.
        tries: How often a task was submitted, by name.
        started: When a task began, by name.
    """

    engine: Ray
    work: Work
    watch: Watch
    should_stop: Callable[[], bool]
    waiting: dict[Any, Task] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    failures: Failures = field(default_factory=dict)
    mailbox: Any = None

    def carried_out(self, tasks: Sequence[Task]) -> Failures:
        """Carries out all."""
        self.mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
        by_name = {task.name: task for task in tasks}
        for task in tasks:
            self._submit(task)
        stopping = False
        try:
            while self.waiting:
                if self.should_stop() and not stopping:
                    stopping = True
                    self._stop()
                self._take_news(by_name)
                for reference in ray.wait(list(self.waiting), timeout=_POLL)[0]:
                    self._end(reference, self.waiting.pop(reference), stopping=stopping)
        finally:
            for reference in self.waiting:
                ray.cancel(reference, force=True)
        if stopping:
            raise Interrupted
        return self.failures

    def _submit(self, task: Task) -> None:
        """Sends a task with what it needs, and with its own run as far as that has come."""
        store, engine = self.work.store, self.engine
        sent = [] if engine.shared_store else [packed(store.run(t).path) for t in (*task.needs, task)]
        run = ray.remote(num_cpus=engine.cpus_per_task, num_gpus=engine.gpus_per_task, max_retries=0)(
            _carried
        )
        every = None if engine.shared_store else engine.checkpoint_every
        self.waiting[run.options(name=task.name).remote(self.work, task, sent, self.mailbox, every)] = task
        self.tries[task.name] = self.tries.get(task.name, 0) + 1

    def _stop(self) -> None:
        """Asks tasks that run to stop, and takes back those that do not."""
        ray.get(self.mailbox.stop.remote())
        for reference, task in self.waiting.items():
            if task.name not in self.started:
                ray.cancel(reference)

    def _take_news(self, by_name: dict[str, Task]) -> None:
        for name, share, parcel in ray.get(self.mailbox.taken.remote()):
            if name not in self.started:
                self._start(by_name[name])
            self.watch.on_progress(by_name[name], share)
            if parcel:
                unpacked(parcel, self.work.store.path)

    def _start(self, task: Task) -> None:
        self.started[task.name] = time.monotonic()
        self.watch.on_start(task)

    def _end(self, reference: Any, task: Task, *, stopping: bool) -> None:
        try:
            ended = ray.get(reference)
        except TaskCancelledError:
            return
        except RayTaskError as error:  # before the task began: what it is made of cannot be had there
            ended = _Ended(f"a worker could not begin it: {_last_line(error)}")
        except RayError as error:
            self._take_news({t.name: t for t in (task, *self.waiting.values())})
            if self.tries[task.name] <= self.engine.retries and not stopping:
                _LOG.warning(
                    "%s: its worker ended, try %d of %d: %s",
                    task.name, self.tries[task.name], 1 + self.engine.retries, _first_line(error),
                )  # fmt: skip
                self._submit(task)
                return
            ended = _Ended(
                f"its worker ended, at the last of {self.tries[task.name]} tries: {_first_line(error)}"
            )
        if ended.parcel:
            unpacked(ended.parcel, self.work.store.path)
        if ended.was_stopped:
            return
        if task.name not in self.started:
            self._start(task)
        self.watch.on_end(task, ended.failure, time.monotonic() - self.started[task.name])
        if ended.failure is not None:
            self.failures[task.name] = ended.failure


@dataclass(frozen=True)
class _Ended:
    """What became of a task.

    Attributes:
        failure: Why it failed, if it did.
        parcel: Its run, unless the store is shared.
        was_stopped: Whether it goes on later.
    """

    failure: str | None
    parcel: bytes = b""
    was_stopped: bool = False


class _Mailbox:
    """An actor: where workers say how far they are, and hear that they should stop."""

    def __init__(self) -> None:
        self.news: list[tuple[str, float, bytes]] = []
        self.stopping = False

    def tell(self, name: str, share: float, parcel: bytes) -> bool:
        """Takes a worker's message; whether it should stop."""
        self.news.append((name, share, parcel))
        return self.stopping

    def is_stopping(self) -> bool:
        """Whether workers are to stop."""
        return self.stopping

    def taken(self) -> list[tuple[str, float, bytes]]:
        """All messages since the last time."""
        news, self.news = self.news, []
        return news

    def stop(self) -> None:
        """Workers are to stop."""
        self.stopping = True


def _carried(work: Work, task: Task, sent: Sequence[bytes], mailbox: Any, every: float | None) -> _Ended:
    """Carries out a task in a worker of Ray; ``every`` is ``None`` if its files are in the store already."""
    if ray.get(mailbox.is_stopping.remote()):
        return _Ended(None, was_stopped=True)
    with tempfile.TemporaryDirectory() as scratch:
        own = work if every is None else replace(work, store=Store(Path(scratch) / "runs"))
        own.store.path.mkdir(parents=True, exist_ok=True)
        for parcel in sent:
            unpacked(parcel, own.store.path)
        path = own.store.run(task).path
        line = _Line(task.name, mailbox, path, every)
        try:
            failure = attempted(own, task, line.say, line.is_stopped)
        except Interrupted:
            return _Ended(None, b"" if every is None else packed(path), was_stopped=True)
        return _Ended(failure, b"" if every is None else packed(path))


@dataclass
class _Line:
    """A worker's line to the mailbox."""

    name: str
    mailbox: Any
    path: Path
    every: float | None
    share: float = 0.0
    told: float = -1e9
    sent: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def say(self, share: float) -> None:
        """Keeps how far the task is, and tells it now and then, with its files more rarely."""
        self.share = share
        self._speak()

    def is_stopped(self) -> bool:
        """Whether the task should stop, asked now and then."""
        self._speak()
        return self.stopped

    def _speak(self) -> None:
        now = time.monotonic()
        if now - self.told < _TOLD_EVERY or self.stopped:
            return
        parcel = b""
        if self.every is not None and now - self.sent >= self.every:
            parcel, self.sent = packed(self.path), now
        self.told = now
        self.stopped = ray.get(self.mailbox.tell.remote(self.name, self.share, parcel))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _last_line(error: Exception) -> str:
    """Of a traceback, the error."""
    return str(error).strip().rpartition("\n")[2]
