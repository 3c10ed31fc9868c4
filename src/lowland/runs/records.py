"""What a run's files hold, whatever the run is of: the keys that are read; there may be others."""

from typing import TypedDict


class ConfigRecord(TypedDict, total=False):
    """``config.json``; without a command it is of ``lowland train``."""

    command: str


class PlaceRecord(TypedDict, total=False):
    """Where a training run was begun."""

    device: str
    data_dir: str | None
    threads: int | None
    directory: str | None


class EnvironmentRecord(TypedDict, total=False):
    """``env.json``."""

    python: str
    platform: str
    processor: str
    versions: dict[str, str | None]
    git_commit: str | None
    place: PlaceRecord


class SmallRow(TypedDict):
    """A row of the metrics of one of several small runs."""

    run: str
