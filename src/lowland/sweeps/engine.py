"""What carries out a list of tasks, and what it tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from lowland.deep import Interrupted
from lowland.errors import InputError
from lowland.sweeps.task import Task
from lowland.sweeps.work import Work

Failures = dict[str, str]
"""Why each task that failed did, by its name."""
_LOG = logging.getLogger(__name__)


@runtime_checkable
class Watch(Protocol):
    """Is told of progress."""

    def on_start(self, task: Task) -> None:
        """When a task begins.

        Args:
            task: The task.
        """

    def on_progress(self, task: Task, share: float) -> None:
        """Now and then.

        Args:
            task: The task.
            share: How much of it is done, from 0 to 1.
        """

    def on_end(self, task: Task, failure: str | None, seconds: float) -> None:
        """When a task has ended.

        Args:
            task: The task.
            failure: Why it failed; ``None`` if it did not.
            seconds: How long it took.
        """


class Unwatched:
    """A watch that says nothing."""

    def on_start(self, task: Task) -> None:
        """Says nothing."""

    def on_progress(self, task: Task, share: float) -> None:
        """Says nothing."""

    def on_end(self, task: Task, failure: str | None, seconds: float) -> None:
        """Says nothing."""


@runtime_checkable
class Engine(Protocol):
    """Carries out tasks that do not need each other. A back end on many machines has no more to do."""

    def opened(self) -> AbstractContextManager[object]:
        """A block in which it is called, several times perhaps: what all calls share is made once."""

    def __call__(
        self, work: Work, tasks: Sequence[Task], watch: Watch, should_stop: Callable[[], bool]
    ) -> Failures:
        """Carries out all, in any order; one that fails does not keep the others from running.

        Args:
            work: What is done with each task.
            tasks: The tasks.
            watch: Is told of progress.
            should_stop: Whether to stop, asked now and then.

        Returns:
            Why each task that failed did, by its name.

        Raises:
            Interrupted: If it was asked to stop; what was running can go on later.
        """


def attempted(
    work: Work, task: Task, on_progress: Callable[[float], object], should_stop: Callable[[], bool]
) -> str | None:
    """Carries out a task; why it failed, if it did."""
    try:
        work(task, on_progress, should_stop)
    except Interrupted:
        raise
    except InputError as error:
        return str(error)
    except Exception as error:
        _LOG.error("%s failed", task.name, exc_info=error)
        return f"{type(error).__name__}: {error}"
    return None
