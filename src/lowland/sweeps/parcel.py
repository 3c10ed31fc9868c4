"""A run's directory as bytes, to be sent to another machine and back."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from pathlib import Path

from lowland.runs.atomic import is_temporary

_INCOMING = ".incoming-"


def packed(path: Path) -> bytes:
    """The files of a run; not its lock, nor what is half written. Empty if there is no run."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for file in sorted(path.rglob("*")) if path.is_dir() else ():
            if file.name != ".lock" and not is_temporary(file):
                archive.add(file, arcname=str(Path(path.name) / file.relative_to(path)), recursive=False)
    return held.getvalue()


def unpacked(parcel: bytes, folder: Path) -> None:
    """Puts a run into the store in ``folder``, file by file, in place of those that are there.

    Whenever the process ends, the run in the store is whole or goes on: what says that a run has come so far
    (its checkpoint, its summary) is written after what it says that of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=_INCOMING) as incoming,
        tarfile.open(fileobj=io.BytesIO(parcel)) as archive,
    ):
        archive.extractall(incoming, filter="data")
        for run in Path(incoming).iterdir():
            (folder / run.name).mkdir(exist_ok=True)
            for file in sorted((f.relative_to(run) for f in run.rglob("*")), key=_order):
                if (run / file).is_dir():
                    (folder / run.name / file).mkdir(exist_ok=True)
                else:
                    (run / file).replace(folder / run.name / file)


def swept(folder: Path) -> None:
    """Removes what a process that was killed left while it unpacked."""
    for left in folder.glob(f"{_INCOMING}*"):
        shutil.rmtree(left, ignore_errors=True)


def _order(file: Path) -> tuple[int, str]:
    """Directories and config first, rows before the checkpoint that counts them, the summary last."""
    if not file.suffix:
        return 0, str(file)
    kind = {"env.json": 1, "config.json": 1, "state.safetensors": 4, "summary.json": 5}
    return kind.get(file.name, 2 if file.suffix == ".jsonl" else 3), str(file)
