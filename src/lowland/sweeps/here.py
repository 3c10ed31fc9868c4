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
    """One task after the other, in this process."""

    def opened(self) -> AbstractContextManager[object]:
        """Nothing is shared."""
        return nullcontext()

    def __call__(
        self, work: Work, tasks: Sequence[Task], watch: Watch, should_stop: Callable[[], bool]
    ) -> Failures:
        """See :class:`~lowland.sweeps.Engine`."""
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
