"""Download from the Hugging Face Hub, at a pinned revision."""

import logging
from pathlib import Path

from lowland.deep.data.source import HubRepository, Part


def download(repository: HubRepository, part: Part) -> Path:
    """The folder of a repository's configuration, with that part's Parquet files in it.

    Only these files are fetched, into the Hub's own cache. What is there already needs no network,
    since a pinned revision cannot change.

    Raises:
        Exception: Whatever the Hub's client raises when it cannot connect, or is refused.
    """
    # Here because it takes longer to import than a local set takes to open.
    from huggingface_hub import logging as hub_logging
    from huggingface_hub import snapshot_download

    def snapshot(*, local_files_only: bool) -> Path:
        root = snapshot_download(
            repository.name,
            repo_type="dataset",
            revision=repository.revision,
            allow_patterns=[f"{repository.config}/{part}-*.parquet"],
            local_files_only=local_files_only,
        )
        return Path(root) / repository.config

    verbosity = hub_logging.get_verbosity()
    # Its warnings of each failed attempt would bury our one sentence.
    hub_logging.set_verbosity(logging.ERROR)
    try:
        folder = snapshot(local_files_only=True)
        # The same revision's other part may be all that was fetched before.
        return folder if any(folder.glob(f"{part}-*.parquet")) else snapshot(local_files_only=False)
    except FileNotFoundError:  # the Hub's LocalEntryNotFoundError is one
        return snapshot(local_files_only=False)
    finally:
        hub_logging.set_verbosity(verbosity)
