"""What a run shows while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from lowland.cli.output import Output, words
from lowland.deep import Observer, TrainConfig, TrainState
from lowland.deep.records import number_of

_REFRESH = 0.25


@contextmanager
def shown(config: TrainConfig, *, quiet: bool, console: Output) -> Iterator[Observer]:
    """A progress bar on a terminal; one plain line per evaluation elsewhere, or if ``quiet``."""
    if quiet or not console.is_terminal:
        yield Lines(config, console)
        return
    columns = (
        words("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=8),
        words("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(config, progress)


class Several:
    """Tells several observers, in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_step(self, state: TrainState) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.on_step(state)

    def on_row(self, row: dict[str, Any]) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.on_row(row)


class Lines:
    """One line per evaluation."""

    def __init__(self, config: TrainConfig, console: Output) -> None:
        self._epochs = config.epochs
        self._console = console
        self._rate = Rate()

    def on_step(self, state: TrainState) -> None:
        """Counts examples."""
        self._rate.count(state)

    def on_row(self, row: dict[str, Any]) -> None:
        """Prints the row."""
        rate = self._rate.text()
        self._console.say(f"epoch {row['epoch']:g}/{self._epochs}  {describe(row)}{rate}")
        self._rate.pause()


class Bar:
    """A progress bar: epoch, loss, error, examples per second, time left."""

    def __init__(self, config: TrainConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._task: TaskID | None = None
        self._rate = Rate()
        self._shown = 0.0
        self._last_row = ""

    def on_step(self, state: TrainState) -> None:
        """Moves the bar, a few times a second."""
        self._rate.count(state)
        now = time.monotonic()
        if now - self._shown < _REFRESH:
            return
        self._shown = now
        steps = state.steps_per_epoch
        _, loss, errors = (state.sums / max(state.seen, 1)).tolist()
        epoch = f"{state.epoch}/{self._config.epochs}"
        error = f" error {100 * errors:.1f}%" if state.criterion.has_errors else ""
        numbers = f"loss {loss:.4f}{error}{self._rate.text()}{self._last_row}"
        done = (state.epoch - 1) * steps + state.iteration
        if self._task is None:
            total = self._config.epochs * steps
            self._task = self._progress.add_task("", total=total, epoch=epoch, numbers=numbers)
        self._progress.update(self._task, completed=done, epoch=epoch, numbers=numbers)

    def on_row(self, row: dict[str, Any]) -> None:
        """Keeps the row's error on the test set for the bar, or its loss."""
        self._rate.pause()
        has_errors = "test_error" in row
        self._last_row = (
            f" test {100 * row['test_error']:.1f}%" if has_errors else f" {_losses(row, ('test',))}"
        )


class Rate:
    """Examples per second of training.

    The time between the ends of two steps counts. So what comes before the end of the first step does not
    (data, start-up, compilation), nor does a step before which there was an evaluation, nor their examples.
    """

    def __init__(self) -> None:
        self._examples = 0
        self._seconds = 0.0
        self._last: float | None = None

    def count(self, state: TrainState) -> None:
        """After a step."""
        now = time.monotonic()
        if self._last is not None:
            self._examples += state.config.batch_size
            self._seconds += now - self._last
        self._last = now

    def pause(self) -> None:
        """Something else than training took its time."""
        self._last = None

    def text(self) -> str:
        """`` 123 examples/s``, or nothing before the second step."""
        return f" {self._examples / self._seconds:.0f} examples/s" if self._seconds > 0.0 else ""


def describe(row: dict[str, Any]) -> str:
    """The main numbers of a row of metrics: errors, or losses where targets are numbers."""
    if "test_error" not in row:
        return f"loss {loss_text(row)}  {_losses(row, ('validation', 'test'))}"
    parts = [f"{label} {100 * row[name]:.2f} %" for label, name in _ERRORS if name in row]
    return "  ".join([f"loss {loss_text(row)}", *parts])


def loss_text(row: dict[str, Any], name: str = "train_loss") -> str:
    """A loss of a row; a diverged one is ``null`` in the file, and ``nan`` here."""
    return f"{number_of(row[name]):.4f}"


def _losses(row: dict[str, Any], splits: Sequence[str]) -> str:
    names = [(split, f"{split}_loss") for split in splits]
    return "  ".join(f"{split} {loss_text(row, name)}" for split, name in names if name in row)


_ERRORS = (
    ("train error", "train_error"),
    ("validation", "validation_error"),
    ("test", "test_error"),
    ("averaged weights", "swa_test_error"),
)
