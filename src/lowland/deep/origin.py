"""What a run was made of that is the user's own: a hash of the data, and the source of network and loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from lowland.deep.config import TrainConfig
from lowland.deep.data import TrainingData
from lowland.deep.data.understood import understood
from lowland.deep.functions import is_function, sources_of
from lowland.deep.records import DataRecord
from lowland.errors import InputError
from lowland.runs import Run
from lowland.runs.atomic import write_json, write_text

FILE = "data.json"
SOURCES = "sources"
_log = logging.getLogger(__name__)


def write_origin(run: Run, config: TrainConfig, data: TrainingData) -> None:
    """Keeps what the run is made of: ``data.json``, and a copy of each module of the user's in ``sources/``.

    The copies are there to be read; nothing runs them.
    """
    if data.own is not None:
        about: DataRecord = {
            "sha256": data.own.sha256,
            "understood": understood(data, config.data_name, config.augmentation),
        }
        write_json(run.path / FILE, about)
    for module, text in _sources(config):
        (run.path / SOURCES).mkdir(exist_ok=True)
        write_text(run.path / SOURCES / f"{module}.py", text)


def require_same_origin(run: Run, data: TrainingData) -> None:
    """Raises :class:`InputError` unless the user's data are those that a run began with."""
    if data.own is None or not (run.path / FILE).exists():
        return
    stored: DataRecord = run.read(FILE, DataRecord)
    if stored["sha256"] != data.own.sha256:
        raise InputError(
            f"{data.own.name} must be the data that {run.path} was trained on, "
            f"of SHA-256 {stored['sha256'][:12]}, got others, of {data.own.sha256[:12]}."
        )


def warn_of_changes(run: Run, config: TrainConfig) -> None:
    """Says which of the user's modules are no longer what they were when the run began."""
    for module, text in _sources(config):
        kept = run.path / SOURCES / f"{module}.py"
        if kept.is_file() and kept.read_text(encoding="utf-8", errors="replace") != text:
            _log.warning("%s has changed since %s began; %s is what it was.", module, run.path, kept)


def _sources(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """The modules that functions of the config are in, and their text."""
    for option in ("model", "loss", "data"):
        name = getattr(config, option)
        if name is not None and is_function(name) and not (option == "data" and Path(name).exists()):
            yield from sources_of(name, option).items()
