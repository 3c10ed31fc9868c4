"""How a command carries out many runs: the engine, its options, and what is shown meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.progress import BarColumn, Progress, TaskID, TimeElapsedColumn

from lowland.cli.interrupts import stop_on_signals
from lowland.cli.output import Output, words
from lowland.cli.small_models import require_positive
from lowland.deep import Place, Ranks, TrainConfig
from lowland.deep.data import TrainingData
from lowland.deep.launch import require_startable
from lowland.deep.share import share_of
from lowland.errors import InputError, require_default
from lowland.extras import MissingExtra
from lowland.sweeps import (
    Engine,
    Failures,
    Here,
    Processes,
    Store,
    Task,
    Training,
    Watch,
    carried_out,
    unfinished,
)


@dataclass(frozen=True)
class CarryingOptions:
    """Where runs happen.

    Attributes:
        jobs: Runs at once, which share the cores; by default one per core (a figure not at scale quick: one).
        ranks: Processes that train a run together; engine ray starts them where the run is.
        threads: CPU threads of a run, on which its last digits depend; by default its share of the cores.
        engine: Where runs happen: in processes of their own, one by one in this one (here), or on ray.
        address: With engine ray: of a cluster, auto for this machine's; without it ray runs on this machine.
        cpus_per_task: With engine ray: cores of a run.
        gpus_per_task: With engine ray: GPUs of a run.
        retries: With engine ray: how often a run whose worker died is tried again, from its checkpoint.
        shared_store: With engine ray: all machines see the directory of the runs, nothing has to travel.
        data_dir: Folder with data sets, DIR/mnist/*.parquet and so on; else $LOWLAND_DATA, else a download.
        device: cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.
    """

    jobs: int | None = None
    ranks: int = 1
    threads: int | None = None
    engine: Literal["processes", "here", "ray"] = "processes"
    address: str | None = None
    cpus_per_task: float = 1.0
    gpus_per_task: float = 0.0
    retries: int = 2
    shared_store: bool = False
    data_dir: Path | None = None
    device: str = "auto"


_OF_RAY = ("address", "cpus_per_task", "gpus_per_task", "retries", "shared_store")
OF_CARRYING = ("jobs", "ranks", "threads", "engine", *_OF_RAY, "data_dir", "device")
"""What nothing reads where nothing runs."""


def check_carrying(options: CarryingOptions) -> None:
    """Refuses options that the engine does not read, or that make no sense."""
    require_positive("jobs", options.jobs)
    require_positive("ranks", options.ranks)
    require_positive("threads", options.threads)
    cores = os.cpu_count() or 1
    if options.address is None and options.ranks > cores:
        raise InputError(f"ranks must be at most this machine's cores, {cores}, got {options.ranks}.")
    if options.engine == "ray" and options.ranks > 1:
        for name in ("cpus_per_task", "gpus_per_task"):
            value = getattr(options, name)
            if value < options.ranks and not (name == "gpus_per_task" and value == 0.0):
                raise InputError(f"{name} must be at least ranks, {options.ranks}, got {value}.")
    if options.engine != "ray":
        require_default(options, _OF_RAY, f"for engine {options.engine}, which does not read it")
    if options.engine == "here" and options.jobs not in (None, 1):
        raise InputError(f"jobs must be left out for engine here, which has one, got {options.jobs}.")
    if options.address is not None and options.jobs is not None:
        raise InputError(
            f"jobs must be left out with address: a cluster has its own cores, got {options.jobs}."
        )
    if not 0.0 < options.cpus_per_task < float("inf"):
        raise InputError(f"cpus_per_task must be positive and finite, got {options.cpus_per_task}.")
    if not 0.0 <= options.gpus_per_task < float("inf"):
        raise InputError(f"gpus_per_task must be non-negative and finite, got {options.gpus_per_task}.")
    if options.retries < 0:
        raise InputError(f"retries must be non-negative, got {options.retries}.")
    there, asked = torch.accelerator.device_count(), options.gpus_per_task
    if options.address is None and asked > there:  # Ray would wait for ever
        raise InputError(
            f"gpus_per_task must be at most this machine's {there} without address, got {asked}."
        )


OnData = Callable[[TrainConfig, TrainingData], object]
"""Is told of each data set, and of the first run that has it."""


def engine_for(
    tasks: Sequence[Task],
    store: Store,
    options: CarryingOptions,
    jobs: int,
    on_data: OnData = lambda *_: None,
) -> Engine:
    """What carries the tasks out; refused before anything is written if it or their data cannot be had.

    Args:
        tasks: What is wanted.
        store: Where results are, and will be.
        options: Where runs happen.
        jobs: How many at once, where the options do not say.
        on_data: Is told of each data set that is still needed.

    Raises:
        InputError: If there is no such device or data set, or the engine is not installed.
    """
    if options.ranks > 1 and not any(isinstance(task, Training) for task in tasks):
        raise InputError(f"ranks must be 1 where no network is trained, got {options.ranks}.")
    engine = _engine(options, _jobs(options, jobs))
    if options.address is None:  # a cluster's machines have devices of their own
        Place(options.device).torch_device()
    configs = _configs(tasks, store)
    for config in configs:
        share_of(config, Ranks(0, options.ranks))
    require_startable(configs, options.data_dir, on_data)
    return engine


def carry_out(
    tasks: Sequence[Task], store: Store, engine: Engine, options: CarryingOptions, jobs: int, console: Output
) -> Failures:
    """Carries out what is not there, and shows how far it is.

    Raises:
        Interrupted: After Ctrl-C; the same command goes on.
    """
    place = _place(options, _jobs(options, jobs))
    with stop_on_signals() as should_stop, _watching(tasks, store, console) as watch:
        return carried_out(tasks, store, engine, place=place, watch=watch, should_stop=should_stop)


def _engine(options: CarryingOptions, jobs: int) -> Engine:
    if options.engine == "here":
        return Here()
    if options.engine == "processes":
        return Processes(jobs)
    try:
        from lowland.sweeps.ray import Ray
    except MissingExtra as error:
        raise InputError(str(error)) from None
    return Ray(
        options.address,
        None if options.address else jobs,
        options.cpus_per_task,
        options.gpus_per_task,
        options.retries,
        options.shared_store,
    )


def _jobs(options: CarryingOptions, jobs: int) -> int:
    """Runs at once: as many as asked for, or as have cores of their own."""
    return options.jobs or max(1, jobs // options.ranks)


def _place(options: CarryingOptions, jobs: int) -> Place:
    data_dir = None if options.data_dir is None else options.data_dir.absolute()
    shares = {"here": os.cpu_count() or 1, "ray": int(options.cpus_per_task)}
    share = shares.get(options.engine, (os.cpu_count() or 1) // jobs) // options.ranks
    return Place(options.device, data_dir, options.threads or max(1, share), Path.cwd(), options.ranks)


def _configs(tasks: Sequence[Task], store: Store) -> list[TrainConfig]:
    """What is still to be trained."""
    return [task.config for task in unfinished(tasks, store) if isinstance(task, Training)]


@contextmanager
def _watching(tasks: Sequence[Task], store: Store, console: Output) -> Iterator[Watch]:
    """A bar for each running task on a terminal, else a line for each that has ended."""
    todo = len(unfinished(tasks, store))
    if not console.is_terminal:
        yield Lines(todo, console)
        return
    columns = (words("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield Bars(todo, progress, console)


class Lines:
    """One line per task."""

    def __init__(self, todo: int, console: Output) -> None:
        self._todo, self._console, self._ended = todo, console, 0

    def on_start(self, task: Task) -> None:
        """Says nothing."""

    def on_progress(self, task: Task, share: float) -> None:
        """Says nothing."""

    def on_end(self, task: Task, failure: str | None, seconds: float) -> None:
        """Says what has ended, and how."""
        self._ended += 1
        how = f"{seconds:.0f} s" if failure is None else f"failed: {failure}"
        self._console.say(f"{self._ended}/{self._todo}  {task.name}  {how}")


class Bars:
    """A bar per running task, and one for all."""

    def __init__(self, todo: int, progress: Progress, console: Output) -> None:
        self._progress, self._console = progress, console
        self._all = progress.add_task("all", total=todo)
        self._bars: dict[str, TaskID] = {}

    def on_start(self, task: Task) -> None:
        """Adds its bar."""
        self._bars[task.name] = self._progress.add_task(task.name, total=1.0)

    def on_progress(self, task: Task, share: float) -> None:
        """Moves it."""
        self._progress.update(self._bars[task.name], completed=share)

    def on_end(self, task: Task, failure: str | None, _: float) -> None:
        """Removes it; a failure stays to be read."""
        if failure is not None:
            self._console.say(f"failed: {task.name}: {failure}")
        if task.name in self._bars:
            self._progress.remove_task(self._bars.pop(task.name))
        self._progress.advance(self._all)
