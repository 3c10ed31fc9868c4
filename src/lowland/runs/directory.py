"""One directory per run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowland.errors import InputError
from lowland.runs.atomic import is_temporary, write_json
from lowland.runs.lines import append_line, finite, read_lines
from lowland.runs.records import ConfigRecord, EnvironmentRecord
from lowland.runs.schema import JSONObject, read_json

_BEFORE_CONFIG = {"env.json", "checkpoint", ".lock"}
"""What a process that was stopped while it made a run may have left, beside temporary files."""

_PATIENCE = 10.0
"""Seconds in which a process that is leaving a run, because nobody hears it any more, has left it."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hex digits that name a configuration.

    Args:
        config: The configuration, as JSON holds it; the order of its keys does not matter.

    Returns:
        The digits.

    Example:
        >>> from lowland.runs import config_hash
        >>> config_hash({"rho": 0.1, "m": 1}) == config_hash({"m": 1, "rho": 0.1})
        True
    """
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def _of_others(path: Path) -> set[str]:
    """What is in a directory beside what a process that was stopped while it made a run may have left."""
    return {file.name for file in path.iterdir() if not is_temporary(file)} - _BEFORE_CONFIG


class Run:
    """A run's directory.

    ``config.json`` (what was run), ``env.json`` (where), ``metrics.jsonl`` (one row per evaluation,
    append-only), ``summary.json`` (written at the end), ``model.safetensors`` and
    ``checkpoint/state.safetensors``.

    Args:
        path: The directory.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.runs import Run, describe_environment
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run.create(Path(folder) / "mine", {"rho": 0.1}, describe_environment())
        ...     with run.locked():
        ...         run.append({"step": 1, "loss": 0.5})
        ...         run.finish({"loss": 0.5})
        ...     print(run.config, run.rows(), run.is_finished)
        {'rho': 0.1} [{'step': 1, 'loss': 0.5}] True
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics_path(self) -> Path:
        """The rows, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def model_path(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def checkpoint_path(self) -> Path:
        """What a resumed run continues from."""
        return self.path / "checkpoint" / "state.safetensors"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """The run of ``config`` in ``path``, a new one or the one that stands there.

        Args:
            path: The directory.
            config: What is run, as JSON holds it.
            environment: Where, as :func:`~lowland.runs.describe_environment` says it.

        Raises:
            InputError: If ``path`` holds a run of another config, or other files.
        """
        run = cls(path)
        if (path / "config.json").exists():
            run._require_same(config)
            return run
        if path.exists() and (not path.is_dir() or _of_others(path)):
            raise InputError(f"{path} must be a new or empty directory, or a run; it holds other files.")
        (path / "checkpoint").mkdir(parents=True, exist_ok=True)
        write_json(path / "env.json", environment)
        write_json(path / "config.json", config)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run that stands in ``path``.

        Args:
            path: The directory.

        Raises:
            InputError: If there is none.
        """
        if not path.is_dir():
            raise InputError(f"a run directory is needed, but there is no directory {path}.")
        if not (path / "config.json").is_file():
            raise InputError(f"a run directory is needed, but {path} has no config.json.")
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """What was run."""
        stored: dict[str, Any] = self.read("config.json", ConfigRecord)
        return stored

    @property
    def environment(self) -> dict[str, Any]:
        """Where it was run."""
        stored: dict[str, Any] = self.read("env.json", EnvironmentRecord)
        return stored

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result; ``None`` while the run is not finished."""
        return self.read("summary.json") if self.is_finished else None

    @property
    def is_finished(self) -> bool:
        """Whether it has a result."""
        return (self.path / "summary.json").exists()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the result, which marks the run as finished.

        Args:
            summary: The result; what is infinite or no number becomes ``null``.
        """
        write_json(self.path / "summary.json", finite(summary))

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row to the metrics, whole or not at all.

        Args:
            row: The row; what is infinite or no number becomes ``null``.

        Raises:
            OSError: If it cannot be written.
        """
        append_line(self.metrics_path, row)

    def rows(self, kind: Any = JSONObject) -> list[dict[str, Any]]:
        """The metrics, without a last line that a killed process left unfinished.

        Args:
            kind: What a row is, as for :func:`~lowland.runs.conform`.

        Raises:
            InputError: If a line is not a JSON object of ``kind``.
        """
        return read_lines(self.metrics_path, kind)

    def last_row(self, kind: Any = JSONObject) -> dict[str, Any]:
        """The last of the metrics.

        Args:
            kind: What a row is, as for :meth:`rows`.

        Raises:
            InputError: If there is none, or as for :meth:`rows`.
        """
        rows = self.rows(kind)
        if not rows:
            raise InputError(f"{self.metrics_path} must hold at least one row, got none.")
        return rows[-1]

    def keep_rows(self, count: int) -> None:
        """Drops the metrics after the first ``count`` rows, which a resumed run will write again.

        Raises:
            InputError: If there are fewer.
        """
        data = self.metrics_path.read_bytes() if self.metrics_path.exists() else b""
        lines = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
        if len(lines) < count:
            raise InputError(
                f"{self.metrics_path} must have the checkpoint's {count} rows, has {len(lines)}."
            )
        size = sum(len(line) for line in lines[:count])
        if len(data) > size:
            with self.metrics_path.open("rb+") as file:
                file.truncate(size)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of this run inside the block.

        A process that is about to leave, such as a worker of a sweep that was killed, is waited for.

        Yields:
            Nothing.

        Raises:
            InputError: If another process is in it and stays.
        """
        try:
            import fcntl
        except ImportError:  # no such locks on this platform
            yield
            return
        with (self.path / ".lock").open("w") as file:
            latest = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= latest:
                        raise InputError(
                            f"{self.path} must be free, but another process is training in it."
                        ) from None
                    time.sleep(0.05)
            yield

    def _require_same(self, config: Mapping[str, Any]) -> None:
        stored = self.config
        wanted = json.loads(json.dumps(config))
        differing = [k for k in sorted({*stored, *wanted}) if stored.get(k) != wanted.get(k)]
        if differing:
            key = differing[0]
            raise InputError(
                f"{self.path} holds a run of another config ({key} is {stored.get(key)!r} there, "
                f"{wanted.get(key)!r} here); give another --out."
            )

    def read(self, name: str, kind: Any = JSONObject) -> Any:
        """What one of the run's JSON files holds, an object of ``kind``; see :func:`~lowland.runs.read_json`.

        Args:
            name: The file's name.
            kind: What it is to hold.

        Raises:
            InputError: If there is no such file, or it holds something else.
        """
        try:
            return read_json(self.path / name, kind)
        except FileNotFoundError:
            raise InputError(f"{self.path} must be a run directory, but has no {name}.") from None
