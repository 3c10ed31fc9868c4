"""What the files of training runs and measures hold: the keys that are read; there may be others."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

# Keys that are required are inherited: NotRequired would not survive annotations that are strings.


class _Evaluated(TypedDict):
    epoch: float
    train_loss: float | None
    full: bool


class MetricsRow(_Evaluated, total=False):
    """A row of a training run's ``metrics.jsonl``; a loss that JSON cannot hold is ``null``.

    Errors are there where targets are classes.
    """

    train_error: float
    validation_error: float
    test_error: float
    validation_loss: float | None
    step: int
    seconds: float
    lr: float
    rho: float
    train_objective: float | None
    test_loss: float | None
    sharpness_small: float | None
    sharpness_rho: float | None
    train_error_noisy: float
    swa_validation_error: float
    swa_test_error: float
    swa_validation_loss: float | None
    swa_test_loss: float | None


class TrainingSummary(TypedDict):
    """A training run's ``summary.json``."""

    last: MetricsRow
    best: MetricsRow
    swa_best: MetricsRow


class _Measured(TypedDict):
    measure: str
    value: float | None


class MeasureRow(_Measured, total=False):
    """A row of ``sharpness.jsonl``, and of the metrics of measures."""

    m: int | None
    rho: float | None
    stderr: float | None
    error_rise: float | None
    ratio: float | None
    smallest: float | None
    edge: float | None
    longer: float | None
    longer_steps: int
    starts: list[float | None]


class _Point(TypedDict):
    train_loss: float | None


class PointRow(_Point, total=False):
    """A point of a line, a curve or a plane."""

    train_error: float
    t: float
    x: float
    y: float
    test_loss: float | None
    test_error: float


class PathRow(PointRow):
    """A point of one of several paths."""

    path: str


class DataRecord(TypedDict):
    """``data.json``: the user's own data."""

    sha256: str
    understood: list[str]


class ProgressRecord(TypedDict):
    """What the training loop keeps in a checkpoint."""

    rows: int
    seconds: float


class CheckpointRecord(TypedDict):
    """The values beside a checkpoint's tensors."""

    format: int
    config: dict[str, Any]
    epoch: int
    iteration: int
    steps: int
    seen: int
    lr: float
    rho: float
    tensors: list[str]
    best: dict[str, float]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    progress: dict[str, Any]


def chosen_by(row: Mapping[str, Any]) -> str:
    """What a run is chosen by: its validation error, or the loss where there are no errors."""
    return "validation_error" if "validation_error" in row else "validation_loss"


def number_of(value: float | None) -> float:
    """A number of a file, where what JSON cannot hold is ``null``."""
    return math.nan if value is None else value
