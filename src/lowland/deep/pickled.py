"""Checkpoints of the original code, read without running anything in them."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.errors import InputError

_DAMAGED = (
    *(pickle.UnpicklingError, struct.error, EOFError, OSError, ValueError, LookupError, RuntimeError),
    *(TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError, ImportError),
)
"""What torch makes of a file that is none of its own: it calls the few functions that it allows with what is
there, and those raise what they like."""

_FOREIGN = re.compile(r"Unsupported global: GLOBAL ([\w.]+)")
"""Where torch names an object that it does not unpickle."""


def read_pickle(path: Path) -> dict[str, dict[str, Any]]:
    """The ``state_dict`` of each kind in a ``.pth``; one of no kind under the empty name.

    A plain one is taken, and the only one beside other things, as in ``{"model": ..., "epoch": 3}``. What
    stands in place of a tensor is left for :func:`~lowland.deep.weights.require_fits` to refuse.

    Raises:
        InputError: If the file holds something else than tensors, or several things that may be meant, is
            not whole, or declares more bytes than it has.
    """
    _require_no_bomb(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise InputError(f"{path} must be a checkpoint of tensors only{_reason(error)}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold a state_dict, got {type(content).__name__}.")
    kinds = ("last", "best", "swa_last", "swa_best")
    nested = {kind: dict(content[kind]) for kind in kinds if isinstance(content.get(kind), Mapping)}
    return nested or {"": dict(_state_in(content, path))}


def _reason(error: BaseException) -> str:
    """What is wrong, where torch's own words are of its options and in escape codes."""
    foreign = _FOREIGN.search(str(error))
    if foreign is not None:
        return f": save model.state_dict(), got a pickled object of {foreign[1]}."
    first = str(error).partition("\n")[0]
    return ", got something else." if "weights_only" in str(error) else f": {first.rstrip('.')}."


def _state_in(content: Mapping[Any, Any], path: Path) -> Mapping[Any, Any]:
    """The ``state_dict``: all that is there, or the one thing in it that is one, as in ``{"model": ...}``.

    Raises:
        InputError: If it may be any of several, or is none.
    """
    if not content or any(isinstance(value, Tensor) for value in content.values()):
        return content
    states = [key for key, value in content.items() if _is_state(value)]
    if len(states) == 1:
        state: Mapping[Any, Any] = content[states[0]]
        return state
    got = f"one in each of {_listed(states)}" if states else f"{_listed(content)}, of which none is one"
    raise InputError(f"{path} must hold one state_dict: save model.state_dict() alone, got {got}.")


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(repr(key) for key in list(keys)[:8])


def _require_no_bomb(path: Path) -> None:
    """Nothing is compressed by torch, so that all its files together are smaller than the archive."""
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
