"""Checkpoints of the original code, read without running anything in them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lowland.errors import InputError

_DAMAGED = (
    *(pickle.UnpicklingError, struct.error, EOFError, OSError, ValueError, LookupError, RuntimeError),
    *(TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError, ImportError),
)
"""What torch makes of a file that is none of its own: it calls the few functions that it allows with what is
there, and those raise what they like."""


def read_pickle(path: Path) -> dict[str, dict[str, Any]]:
    """The ``state_dict`` of each kind in a ``.pth``; of a plain one under the empty name.

    What stands in place of a tensor is left for :func:`~lowland.deep.weights.require_fits` to refuse.

    Raises:
        InputError: If the file holds something else than tensors, is not whole, or declares more bytes than
            it has.
    """
    _require_no_bomb(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} must be a checkpoint of tensors only: {reason}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold a state_dict, got {type(content).__name__}.")
    kinds = ("last", "best", "swa_last", "swa_best")
    nested = {kind: dict(content[kind]) for kind in kinds if isinstance(content.get(kind), Mapping)}
    return nested or {"": dict(content)}


def _require_no_bomb(path: Path) -> None:
    """torch compresses nothing, so that all its files together are smaller than the archive."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise InputError(f"{path} must be a whole archive of tensors: {error}.") from None
    if declared > path.stat().st_size:
        raise InputError(
            f"{path} must hold no more than its {path.stat().st_size} bytes, it declares {declared}."
        )
