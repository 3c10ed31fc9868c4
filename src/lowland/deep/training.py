"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from lowland.deep.checkpoint import load_checkpoint, save_checkpoint
from lowland.deep.config import TrainConfig
from lowland.deep.data import TrainingData
from lowland.deep.evaluation import ranking
from lowland.deep.measuring import measure
from lowland.deep.processes import ProcessLost, is_lost, ranks
from lowland.deep.records import MetricsRow, ProgressRecord, chosen_by
from lowland.deep.seeding import generators_kept
from lowland.deep.state import TrainState
from lowland.deep.tensors import write_tensors
from lowland.errors import InputError
from lowland.runs import Run, conform
from lowland.sam.unbatchable import Unbatchable


class Interrupted(Exception):
    """Training stopped before its end because it was asked to; a checkpoint was written."""


@runtime_checkable
class Observer(Protocol):
    """Is told of progress; the loop prints nothing itself."""

    def on_step(self, state: TrainState) -> None:
        """After each step.

        Args:
            state: The network in training.
        """
        ...

    def on_row(self, row: dict[str, Any]) -> None:
        """After each evaluation.

        Args:
            row: What was measured, as it is in ``metrics.jsonl``.
        """
        ...


@dataclass(frozen=True)
class Control:
    """How to run, as opposed to what.

    Attributes:
        observer: Is told of progress.
        checkpoint_every: Seconds between checkpoints; ``None`` writes one at the end of each epoch.
        should_stop: Asked after each step; if true, a checkpoint is written and training stops. Of several
            processes one is enough.
        on_data: Called with the data once they are read, before anything is written.
        on_start: Called once all that is wrong has been refused, before the first step.

    Example:
        >>> from lowland.deep import Control, Interrupted, Place, TrainConfig, launch
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=2, batch_size=300)
        >>> try:
        ...     launch(config, None, Place(device="cpu"), Control(should_stop=lambda: True))
        ... except Interrupted:
        ...     print("stopped after its first step")
        stopped after its first step
    """

    observer: Observer | None = None
    checkpoint_every: float | None = None
    should_stop: Callable[[], bool] = lambda: False
    on_data: Callable[[TrainingData], object] = lambda _: None
    on_start: Callable[[], object] = lambda: None


def train(
    config: TrainConfig, data: TrainingData, device: torch.device, run: Run | None, control: Control
) -> list[dict[str, Any]]:
    """Trains from the beginning, or from the run's checkpoint, to the end.

    The same config on the same machine gives the same weights and metrics (times aside) bit for bit,
    however often the run was killed and continued. The default generators are left as they were.

    Where ``torch.distributed`` has a group, its processes train together, and all call this: the first one
    writes and is observed, and the numbers are those of one process, to rounding.

    Args:
        config: What to train.
        data: The data that ``config`` names.
        device: Where to train.
        run: Where metrics, checkpoints and weights go; ``None`` writes nothing.
        control: How to run.

    Returns:
        The rows of the metrics.

    Raises:
        Interrupted: If ``control.should_stop`` said so.
        InputError: If the config does not fit the data, or a checkpoint cannot be read.
        OSError: If a file cannot be written; the last checkpoint is whole.
        ProcessLost: If another process has ended.

    Example:
        >>> import torch
        >>> from lowland.deep import Control, TrainConfig, load_data, train
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=2, batch_size=300)
        >>> rows = train(config, load_data(config), torch.device("cpu"), None, Control())
        >>> [row["epoch"] for row in rows], rows[-1]["test_error"] < 0.1
        ([0.0, 1.0, 2.0], True)
    """
    with generators_kept():
        loop = _Loop(config, data, device, run, control)
        if loop.ranks.is_first:
            control.on_start()
        try:
            loop.run()
        except Unbatchable as error:
            raise InputError(str(error)) from None
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise ProcessLost("another process of the run has ended before it did.") from None
        return loop.rows


class _Loop:
    def __init__(
        self, config: TrainConfig, data: TrainingData, device: torch.device, run: Run | None, control: Control
    ) -> None:
        self.config, self.control, self.record = config, control, run
        resumed = run is not None and run.checkpoint_path.exists()
        # The checkpoint has the weights; the file that they once came from may be gone.
        beside = None if run is None else run.path.parent
        self.ranks = ranks()
        self.state = self.ranks.together(
            lambda: TrainState(config, data, device, fresh=not resumed, beside=beside)
        )
        self.rows: list[dict[str, Any]] = []
        self.started = time.monotonic()
        if run is not None and resumed:
            seconds = self.ranks.together(lambda: self.resume(run))
            self.rows = self.ranks.first_alone(lambda: run.rows(MetricsRow))
            self.started -= seconds
        elif run is not None:
            self.ranks.first_alone(lambda: run.keep_rows(0))
        self.last_checkpoint = time.monotonic()

    def resume(self, run: Run) -> float:
        """Goes back to the checkpoint, and returns the seconds of training before it."""
        path = run.checkpoint_path
        found = conform(load_checkpoint(path, self.state), ProgressRecord, "progress", of=f" of {path}")
        if self.ranks.is_first:
            run.keep_rows(found["rows"])
        seconds: float = found["seconds"]
        return seconds

    def run(self) -> None:
        state = self.state
        if not self.rows:
            self.add_row(full=False)
        while state.epoch <= self.config.epochs:
            if state.iteration == 0:
                self.remove_hardest()
            while state.iteration < state.steps_per_epoch:
                state.step()
                self.after_step()
            self.end_epoch()
        if self.record is not None:
            record = self.record
            self.ranks.first_alone(lambda: self.finish(record))

    def after_step(self) -> None:
        if self.control.observer is not None and self.ranks.is_first:
            self.control.observer.on_step(self.state)
        every = self.config.eval_iter_freq
        if every > 0 and self.state.steps % every == 0:
            self.add_row(full=True)
        interval = self.control.checkpoint_every
        is_due = interval is not None and time.monotonic() - self.last_checkpoint >= interval
        stops, is_due = self.ranks.most([self.control.should_stop(), is_due], self.state.device)
        if stops or is_due:
            self.checkpoint()
        if stops:
            raise Interrupted

    def end_epoch(self) -> None:
        state, config = self.state, self.config
        every_five = config.eval_iter_freq == -1 and state.epoch % 5 == 0
        if state.seen > 0:
            self.add_row(full=every_five or state.epoch == config.epochs)
        k = config.save_model_each_k_epochs
        if self.record is not None and k > 0 and state.epoch % k == 0:
            path = self.record.path / f"model-epoch-{state.epoch:04d}.safetensors"
            self.ranks.first_alone(lambda: write_tensors(path, state.model.state_dict()))
        state.next_epoch()
        if self.control.checkpoint_every is None or state.epoch > config.epochs:
            self.checkpoint()

    def remove_hardest(self) -> None:
        """Drops the training points with the highest loss or entropy, once."""
        state, config = self.state, self.config
        # round() first: 0.29 * 100 is 28.999999999999996
        epoch = math.floor(round(config.epoch_rm_noise * config.epochs, 6)) + 1
        if config.n_rm_pts == 0 or state.epoch != epoch:
            return
        if len(state.kept) < len(state.data.train):
            return
        by = ranking(config, state.model, state.train, state.criterion, ranks=self.ranks)
        order = by.sort(stable=True).indices
        count = len(order) - round(config.n_rm_pts * len(order))
        state.keep(order[:count].sort().values)

    def add_row(self, *, full: bool) -> None:
        row = measure(self.state, full=full or self.evaluates_all())
        self.state.reset_sums()
        row["seconds"] = round(time.monotonic() - self.started, 3)
        self.rows.append(row)
        self.ranks.first_alone(lambda: self.tell(row))

    def tell(self, row: dict[str, Any]) -> None:
        if self.record is not None:
            self.record.append(row)
        if self.control.observer is not None:
            self.control.observer.on_row(row)

    def evaluates_all(self) -> bool:
        """Whether a cheap evaluation would see every validation and test example anyway."""
        data = self.state.data
        return max(len(data.validation), len(data.test)) <= self.config.n_eval_every_k_iter

    def checkpoint(self) -> None:
        if self.record is not None:
            path, seconds = self.record.checkpoint_path, time.monotonic() - self.started
            self.ranks.first_alone(
                lambda: save_checkpoint(path, self.state, rows=len(self.rows), seconds=seconds)
            )
        self.last_checkpoint = time.monotonic()

    def finish(self, run: Run) -> None:
        state = self.state
        kinds = {"last": state.model.state_dict(), "swa_last": state.average.model.state_dict()}
        kinds |= {kind: weights for kind, (_, weights) in state.best.items()}
        tensors = {f"{kind}.{name}": t for kind, weights in kinds.items() for name, t in weights.items()}
        write_tensors(run.model_path, tensors)
        run.finish(summarize(self.rows))


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last row, and the row with the lowest validation error (or loss) among the full evaluations.

    The test set selects nothing.

    Args:
        rows: The rows of the metrics, at least one of them of a full evaluation.

    Returns:
        These two rows, ``last`` and ``best``, and ``swa_best``, that of averaged weights.

    Example:
        >>> from lowland.deep import Control, Place, TrainConfig, launch, summarize
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=2, batch_size=300)
        >>> found = summarize(launch(config, None, Place(device="cpu"), Control()))
        >>> sorted(found), found["best"]["validation_error"] <= found["last"]["validation_error"]
        (['best', 'last', 'swa_best'], True)
    """
    full = [row for row in rows if row["full"]]
    name = chosen_by(rows[-1])

    def lowest(name: str) -> dict[str, Any]:
        return min(full, key=lambda row: _or_infinite(row[name]))

    return {"last": rows[-1], "best": lowest(name), "swa_best": lowest(f"swa_{name}")}


def _or_infinite(value: float | None) -> float:
    """A number that is none is worse than any."""
    return math.inf if value is None or math.isnan(value) else value
