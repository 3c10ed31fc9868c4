"""What the files of training runs and measures hold: the keys that are read; there may be others."""

from typing import Any, TypedDict

# Keys that are required are inherited: NotRequired would not survive annotations that are strings.


class _Evaluated(TypedDict):
    epoch: float
    train_loss: float | None
    train_error: float
    validation_error: float
    test_error: float
    full: bool


class MetricsRow(_Evaluated, total=False):
    """A row of a training run's ``metrics.jsonl``; a loss that JSON cannot hold is ``null``."""

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


class _Point(TypedDict):
    train_loss: float | None
    train_error: float


class PointRow(_Point, total=False):
    """A point of a line, a curve or a plane."""

    t: float
    x: float
    y: float
    test_loss: float | None
    test_error: float


class PathRow(PointRow):
    """A point of one of several paths."""

    path: str


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
