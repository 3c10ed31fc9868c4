"""Arrays by name: x and y, and perhaps x_val, x_test and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lowland.deep.data.own.examples import PARTS, Raw
from lowland.deep.tensors import read_tensors
from lowland.errors import InputError
from lowland.runs import read_arrays

_KEYS = ("x", "y", "mask")


def arrays_in(path: Path) -> dict[str, Any]:
    """The arrays of an ``.npz`` or a ``.safetensors`` file, by name.

    Raises:
        InputError: If it is none, or not whole.
    """
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    return dict(read_tensors(path)[0])


def parts_of_arrays(arrays: Mapping[str, Any], where: str) -> dict[str, Raw]:
    """The parts of what is called ``x``, ``y`` and ``mask``, with the name of a part behind it or not.

    Raises:
        InputError: If there is no ``x``, an ``x`` without its ``y``, or something else.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        kind, _, suffix = name.partition("_")
        part = next((part for part, names in PARTS.items() if (suffix or "train") in names), None)
        if kind not in _KEYS or part is None:
            raise InputError(
                f"{where} must hold x and y, and perhaps mask, x_val, y_val, x_test, y_test, got {name}."
            )
        if kind in found.setdefault(part, {}):
            raise InputError(f"{where} must hold {kind} of {part} once, got it twice.")
        found[part][kind] = array
    found.setdefault("train", {})
    for part, own in found.items():
        for kind in ("x", "y"):
            if kind not in own:
                name = kind if part == "train" else f"{kind}_{part}"
                raise InputError(
                    f"{where} must hold {name}, it holds {', '.join(sorted(arrays)) or 'nothing'}."
                )
    return {
        part: Raw(found[part]["x"], found[part]["y"], found[part].get("mask"))
        for part in PARTS
        if part in found
    }
