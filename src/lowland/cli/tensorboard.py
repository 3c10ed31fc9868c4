"""Rows of a run's metrics as TensorBoard's scalars."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.deep import TrainState
from lowland.deep.records import MetricsRow
from lowland.errors import InputError
from lowland.extras import MissingExtra, needs
from lowland.runs import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_GROUPS = ("train", "validation", "test", "swa", "running", "sharpness")
_NOT_DRAWN = ("step", "seconds", "full")


class EventLog:
    """Writes the rows of a run into its ``tensorboard`` folder.

    The folder says what ``metrics.jsonl`` says: it is written anew from there at the first row of a process,
    so that rows which a killed process wrote after its last checkpoint are not there twice.

    Args:
        path: The run's directory.

    Raises:
        InputError: If TensorBoard is not installed.
    """

    def __init__(self, path: Path) -> None:
        require_tensorboard()
        self._path = path
        self._writer: SummaryWriter | None = None

    def on_step(self, state: TrainState) -> None:
        """Writes nothing."""

    def on_row(self, row: dict[str, Any]) -> None:
        """Writes the row, which is in ``metrics.jsonl`` already."""
        if self._writer is None:
            self._write_all()
        else:
            self._write(self._writer, row, time.time())

    def write_all(self) -> None:
        """Writes the rows that there are, and ends."""
        self._write_all()
        self.close()

    def close(self) -> None:
        """Ends; a row after this is the first again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_all(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self._path / FOLDER
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        rows = Run.open(self._path).rows(MetricsRow)
        # Readers that are open forget, by the purge, what they have read of the files that are gone.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        for row in rows:
            self._write(
                self._writer, row, time.time() - rows[-1].get("seconds", 0.0) + row.get("seconds", 0.0)
            )

    def _write(self, writer: SummaryWriter, row: Mapping[str, Any], at: float) -> None:
        for tag, value in scalars(row):
            writer.add_scalar(tag, value, row["step"], walltime=at)
        writer.flush()


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of the finite numbers of a row, in groups.

    Example:
        >>> list(scalars({"step": 3, "train_loss": 0.5, "swa_test_error": 0.1, "lr": 0.2, "test_loss": None}))
        [('train/loss', 0.5), ('swa/test_error', 0.1), ('lr', 0.2)]
    """
    for name, value in row.items():
        if name in _NOT_DRAWN or value is None or not math.isfinite(value):
            continue
        group, _, rest = name.partition("_")
        yield f"{group}/{rest}" if group in _GROUPS else name, value


def require_tensorboard() -> None:
    """Raises :class:`~lowland.errors.InputError` if TensorBoard is not installed."""
    try:
        with needs("tensorboard", "tensorboard"):
            importlib.import_module("torch.utils.tensorboard")
    except MissingExtra as error:
        raise InputError(str(error)) from None
