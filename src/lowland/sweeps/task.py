"""One run that a figure needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

from lowland.deep import Interrupted, Place
from lowland.runs import Run, read_lines
from lowland.runs.lines import append_line


class TimeRow(TypedDict):
    """A row of ``times.jsonl``."""

    task: str
    seconds: float


@dataclass(frozen=True)
class How:
    """Where and how a task is carried out, as opposed to what it is.

    Attributes:
        place: Device, data and threads.
        on_progress: Called with the share that is done.
        should_stop: Asked now and then; a task that can stop does so when it is true, and can go on later.

    Example:
        >>> from lowland.deep import Interrupted
        >>> from lowland.sweeps import How
        >>> try:
        ...     How(should_stop=lambda: True).heed()
        ... except Interrupted:
        ...     print("stopped")
        stopped
    """

    place: Place = field(default_factory=Place)
    on_progress: Callable[[float], object] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False

    def heed(self) -> None:
        """Raises :class:`~lowland.deep.Interrupted` if the task should stop."""
        if self.should_stop():
            raise Interrupted


@dataclass(frozen=True)
class Store:
    """A directory of runs, one per task.

    Attributes:
        path: The directory.

    Example:
        >>> from pathlib import Path
        >>> from lowland.deep import TrainConfig
        >>> from lowland.sweeps import Store, Training
        >>> store, task = Store(Path("nowhere")), Training(TrainConfig(model="fc"))
        >>> store.run(task).path == Path("nowhere") / task.name, store.has(task)
        (True, False)
    """

    path: Path

    def run(self, task: Task) -> Run:
        """The run of a task, whether it exists or not.

        Args:
            task: The task.
        """
        return Run(self.path / task.name)

    def took(self, task: Task, seconds: float) -> None:
        """Keeps how long a task took.

        Args:
            task: The task.
            seconds: How long it took.
        """
        append_line(self.path / "times.jsonl", {"task": task.name, "seconds": round(seconds, 3)})

    def times(self) -> dict[str, float]:
        """How long tasks took, by name; of one that stopped in between, its last part."""
        return {row["task"]: row["seconds"] for row in read_lines(self.path / "times.jsonl", TimeRow)}

    def has(self, task: Task) -> bool:
        """Whether a task is finished.

        Args:
            task: The task.
        """
        return self.run(task).is_finished


@runtime_checkable
class Task(Protocol):
    """A config, and the function that carries it out."""

    @property
    def name(self) -> str:
        """Of its run directory: readable, and ending in the hash of what :meth:`describe` returns."""

    @property
    def needs(self) -> tuple[Task, ...]:
        """The tasks whose results this one reads."""

    def describe(self) -> dict[str, Any]:
        """The config as JSON holds it."""

    def cost(self) -> float:
        """The estimated seconds on one core, within a factor of about three."""

    def carry_out(self, store: Store, how: How) -> None:
        """Does it in its run directory, continuing where it stopped; the last thing written is the summary.

        Args:
            store: Where its run directory is, and those of the tasks that it needs.
            how: Device and threads, and whom to tell.

        Raises:
            Interrupted: If it was asked to stop.
            InputError: If something that it reads is wrong.
        """
