"""Download from the Hugging Face Hub, at a pinned revision."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from lowland.deep.data.source import HubRepository, Part
from lowland.errors import InputError

HUB = "hf://"
_OWN = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")


def download(repository: HubRepository, part: Part) -> Path:
    """The folder of a repository's configuration, with that part's Parquet files in it.

    Only these files are fetched, into the Hub's own cache. What is there already needs no network,
    since a pinned revision cannot change.

    Raises:
        Exception: Whatever the Hub's client raises when it cannot connect, or is refused.
    """
    pattern = f"{repository.config}/{part}-*.parquet"
    # The same revision's other part may be all that was fetched before.
    root = _snapshot(repository.name, repository.revision, pattern, lambda root: any(root.glob(pattern)))
    return root / repository.config


def download_own(name: str) -> Path:
    """The folder with the Parquet files of ``hf://owner/name``, perhaps with ``@revision`` and ``/folder``.

    Raises:
        InputError: If it is no such name, or cannot be downloaded.
    """
    match = _OWN.fullmatch(name)
    if match is None:
        raise InputError(f"data on the Hugging Face Hub must be hf://owner/name@revision/folder, got {name}.")
    repository, revision, folder = match[1], unquote(match[2] or "main"), match[3]
    below = "" if folder is None else folder.rstrip("/") + "/"
    is_pinned = re.fullmatch("[0-9a-f]{40}", revision) is not None
    try:
        # A branch moves, so what is there of it may be old.
        root = _snapshot(repository, revision, f"{below}*.parquet", lambda _: is_pinned)
    # The client's HTTP library, and so the class of a failed connection, changes between its versions.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}".rstrip(".: ")
        raise InputError(
            f"{name} must be a data set on the Hugging Face Hub that can be downloaded: {reason}."
        ) from error
    found = root / below
    if not any(found.rglob("*.parquet")):
        raise InputError(
            f"{name} must hold Parquet files, got none; "
            f"hf://{repository}@refs%2Fconvert%2Fparquet has those that the Hub makes of most sets."
        )
    return found


def _snapshot(repository: str, revision: str, pattern: str, is_whole: Callable[[Path], bool]) -> Path:
    """The local folder with a repository's files; what is there and whole needs no network."""
    # Here because it takes longer to import than a local set takes to open.
    from huggingface_hub import logging as hub_logging
    from huggingface_hub import snapshot_download

    def snapshot(*, local_files_only: bool) -> Path:
        root = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[pattern],
            local_files_only=local_files_only,
        )
        return Path(root)

    verbosity = hub_logging.get_verbosity()
    # Its warnings of each failed attempt would bury our one sentence.
    hub_logging.set_verbosity(logging.ERROR)
    try:
        root = snapshot(local_files_only=True)
        return root if is_whole(root) else snapshot(local_files_only=False)
    except FileNotFoundError:  # the Hub's LocalEntryNotFoundError is one
        return snapshot(local_files_only=False)
    finally:
        hub_logging.set_verbosity(verbosity)
