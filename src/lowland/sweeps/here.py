"""Tasks one after the other."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from lowland.deep import Interrupted
from lowland.sweeps.engine import Failures, Watch, attempted
from lowland.sweeps.task import Task
from lowland.sweeps.work import Work


@dataclass(frozen=True)
class Here:
    """One task after the other, in this process.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.deep import Place, TrainConfig
        >>> from lowland.sweeps import Here, Store, Training, carried_out
        >>> class Told:  # a watch
        ...     def on_start(self, task):
        ...         print("begun")
        ...     def on_progress(self, task, share):
        ...         print(f"{share:.0%}", end=" ")
        ...     def on_end(self, task, failure, seconds):
        ...         print("failed" if failure else "done")
        >>> missing = Training(TrainConfig(data="nowhere", model="fc"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = carried_out([missing], Store(Path(folder)), Here(), place=Place(), watch=Told())
        begun
        failed
        >>> found[missing.name].startswith("data must be a folder")
        True
    """

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
        for task in tasks:
            if should_stop():
                raise Interrupted
            started = time.monotonic()
            watch.on_start(task)
            on_progress = functools.partial(watch.on_progress, task)
            failure = attempted(work, task, on_progress, should_stop)
            watch.on_end(task, failure, time.monotonic() - started)
            if failure is not None:
                failures[task.name] = failure
        return failures
