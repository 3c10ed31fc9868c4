"""A short name for data of somebody's own."""

import os
import re
from pathlib import Path

from lowland.deep.data.hub import HUB
from lowland.deep.data.own.examples import part_called
from lowland.deep.functions import is_function


def name_of_data(data: str) -> str:
    """What a run's name and tables call them: the last part of where they are.

    Example:
        >>> [name_of_data(data) for data in ("my photos/", "x/y.npz", "hf://owner/name@main", "mine:load")]
        ['my-photos', 'y', 'name', 'mine.load']
    """
    if data.startswith(HUB):
        parts = data.removeprefix(HUB).removeprefix("datasets/").split("/")
        name = parts[1].partition("@")[0] if len(parts) > 1 else parts[0]
    elif is_function(data):
        name = data.replace(":", ".")
    else:
        path = Path(os.path.expanduser(data)).resolve()  # noqa: PTH111 -- of an unknown user pathlib raises
        is_part = path.suffix == ".parquet" and part_called(path.stem.partition("-")[0]) is not None
        name = path.parent.name if is_part else path.stem
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "data"
