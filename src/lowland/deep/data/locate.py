"""Find a set's Parquet files: in the package, in a local folder, or on the Hugging Face Hub."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lowland.deep.data import hub
from lowland.deep.data.source import ParquetSource, Part
from lowland.errors import InputError

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.parquet$")


@dataclass(frozen=True)
class ParquetFiles:
    """The files of one part of a set, in the order in which their rows count.

    Attributes:
        paths: One or several files.
        sha256: The hash that the files must have, where one is known.
    """

    paths: tuple[Path, ...]
    sha256: str | None = None


def locate(source: ParquetSource, part: Part, *, data_dir: str | Path | None = None) -> ParquetFiles:
    """The Parquet files of one part of a set.

    They are looked for in ``<data_dir>/<set>/`` and anywhere below it, the Hub's configuration folder
    first; ``data_dir`` is the environment's ``LOWLAND_DATA`` if not given. A set that is not there is
    downloaded.

    Raises:
        InputError: If the files are nowhere, or some of them are missing.
    """
    if source.embedded is not None:
        return ParquetFiles(_files_in(source.embedded, source, part))
    data = _data_folder(data_dir)
    if data is not None and (data / source.name).is_dir():
        return ParquetFiles(_files_in(data / source.name, source, part))
    if source.hub is None:
        raise InputError(_not_found(source, part, data, reason="it cannot be downloaded"))
    try:
        folder = hub.download(source.hub, part)
    # The client's HTTP library, and so the class of a failed connection, changes between its versions.
    except Exception as error:
        raise InputError(_not_found(source, part, data, reason=_in_one_line(error))) from error
    return ParquetFiles(_files_in(folder, source, part), source.hub.sha256.get(part))


def _data_folder(data_dir: str | Path | None) -> Path | None:
    given, name = (
        (os.environ.get("LOWLAND_DATA"), "LOWLAND_DATA") if data_dir is None else (data_dir, "data_dir")
    )
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise InputError(f"{name} must be an existing folder, got {str(given)!r}.")
    return folder


def _files_in(folder: Path, source: ParquetSource, part: Part) -> tuple[Path, ...]:
    below = sorted(folder.rglob("*.parquet"))
    found = [path for path in below if path.name.startswith(f"{part}-")]
    if source.hub is not None:
        config = source.hub.config
        found = [path for path in found if config in path.relative_to(folder).parts[:-1]] or found
    if not found:
        names = ", ".join(str(path.relative_to(folder)) for path in below) or "no Parquet file"
        raise InputError(f"{folder} must hold {part}-*.parquet of {source.name}, got {names}.")
    folders = sorted({path.parent for path in found})
    # CIFAR-10-C, which is not on the Hub in one layout, may have a folder per corruption.
    if source.hub is not None and len(folders) > 1:
        raise InputError(
            f"{folder} must hold {part}-*.parquet of {source.name} in one folder, "
            f"got it in {' and '.join(map(str, folders))}."
        )
    for parent in folders:
        require_every_shard(parent, [path.name for path in found if path.parent == parent])
    return tuple(found)


def require_every_shard(folder: Path, names: list[str]) -> None:
    """Raises :class:`InputError` unless all the files that the names count are there."""
    shards = sorted((int(match[1]), int(match[2])) for name in names if (match := _SHARD.search(name)))
    totals = [total for _, total in shards]
    if shards != [(shard, max(totals)) for shard in range(max(totals, default=0))]:
        raise InputError(
            f"{folder} must hold all the files that their names count (…-of-{max(totals):05d}), "
            f"got {', '.join(names)}."
        )


def _in_one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"the download failed with {text.rstrip('.')}"


def _not_found(source: ParquetSource, part: Part, data: Path | None, *, reason: str) -> str:
    where = (
        "neither data_dir nor LOWLAND_DATA is given" if data is None else f"there is no {data / source.name}"
    )
    origin = "" if source.hub is None else f" from huggingface.co/datasets/{source.hub.name}"
    config = "" if source.hub is None else f"{source.hub.config}/"
    return (
        f"The data set {source.name} must be in a local folder or on the Hugging Face Hub, "
        f"but {where} and {reason}: "
        f"put its Parquet files{origin} at <folder>/{source.name}/{config}{part}-*.parquet, "
        "and give <folder> as data_dir or LOWLAND_DATA."
    )
