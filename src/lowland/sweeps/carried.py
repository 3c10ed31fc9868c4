"""Tasks carried out in the order of what they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from lowland.deep import Place
from lowland.sweeps.engine import Engine, Failures, Unwatched, Watch
from lowland.sweeps.task import Store, Task
from lowland.sweeps.work import Work


def carried_out(
    tasks: Sequence[Task],
    store: Store,
    engine: Engine,
    *,
    place: Place,
    watch: Watch | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Failures:
    """Carries out what is not in the store yet, and what that needs.

    Args:
        tasks: What is wanted.
        store: Where results are, and will be.
        engine: Where tasks run.
        place: Device, data and threads of one task.
        watch: Is told of progress; by default nobody is.
        should_stop: Whether to stop; what was running can go on later.

    Returns:
        Why each task that failed did, by its name; one that needs it fails too.

    Raises:
        Interrupted: If ``should_stop`` said so.

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
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=1, batch_size=300)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store, place = Store(Path(folder)), Place(device="cpu")
        ...     for _ in range(2):  # what is there is not done again
        ...         failures = carried_out([Training(config)], store, Here(), place=place, watch=Told())
        begun
        33% 67% 100% done
        >>> failures
        {}
    """
    watch = watch or Unwatched()
    failures: Failures = {}
    levels = [[task for task in level if not store.has(task)] for level in in_levels(tasks)]
    with engine.opened() if any(levels) else nullcontext():
        store.path.mkdir(parents=True, exist_ok=True)
        for level in levels:
            ready = []
            for task in level:
                missing = [needed.name for needed in task.needs if needed.name in failures]
                if missing:
                    failures[task.name] = f"it needs {missing[0]}, which failed."
                    watch.on_end(task, failures[task.name], 0.0)
                else:
                    ready.append(task)
            if ready:
                failures |= engine(Work(store, place), ready, _Timing(watch, store), should_stop)
    return failures


def unfinished(tasks: Sequence[Task], store: Store) -> list[Task]:
    """The tasks, and what they need, that are not in the store yet, each once.

    Args:
        tasks: What is wanted.
        store: Where results are.

    Example:
        >>> from pathlib import Path
        >>> from lowland.deep import TrainConfig
        >>> from lowland.sweeps import Store, Training, unfinished
        >>> erm = Training(TrainConfig(model="fc"))
        >>> further = Training(TrainConfig(model="fc", sam_rho=0.1), start=erm)
        >>> unfinished([further, erm], Store(Path("nowhere"))) == [erm, further]
        True
    """
    return [task for level in in_levels(tasks) for task in level if not store.has(task)]


def in_levels(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks and all that they need, each once, such that a task needs earlier levels only.

    Args:
        tasks: What is wanted.

    Example:
        >>> from lowland.deep import TrainConfig
        >>> from lowland.sweeps import Training, in_levels
        >>> erm = Training(TrainConfig(model="fc"))
        >>> further = Training(TrainConfig(model="fc", sam_rho=0.1), start=erm)
        >>> in_levels([further]) == [[erm], [further]]
        True
    """
    depth: dict[str, int] = {}
    by_name: dict[str, Task] = {}

    def visit(task: Task) -> int:
        if task.name not in depth:
            by_name[task.name] = task
            depth[task.name] = 1 + max((visit(needed) for needed in task.needs), default=-1)
        return depth[task.name]

    for task in tasks:
        visit(task)
    levels: list[list[Task]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for name, level in depth.items():
        levels[level].append(by_name[name])
    return levels


@dataclass(frozen=True)
class _Timing:
    """Keeps how long tasks took, and passes on what it is told."""

    watch: Watch
    store: Store

    def on_start(self, task: Task) -> None:
        self.watch.on_start(task)

    def on_progress(self, task: Task, share: float) -> None:
        self.watch.on_progress(task, share)

    def on_end(self, task: Task, failure: str | None, seconds: float) -> None:
        if failure is None:
            self.store.took(task, seconds)
        self.watch.on_end(task, failure, seconds)
