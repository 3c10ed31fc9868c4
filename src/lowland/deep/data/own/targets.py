"""Targets: a class for each example, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowland.errors import InputError

_MOST_CLASSES = 65_536


def settled_targets(parts: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The targets of every part as tensors, and the names of the classes; none if they are numbers.

    Whole numbers are classes from 0, text names them, and other numbers are what is to be predicted.

    Args:
        parts: What each part has.
        where: Where they come from, for errors.

    Raises:
        InputError: If they are of several kinds, or no such targets.
    """
    arrays = {part: _array(targets, f"{where} ({part})") for part, targets in parts.items()}
    kinds = {_kind(array, f"{where} ({part})") for part, array in arrays.items()}
    if len(kinds) > 1:
        raise InputError(
            f"targets of {where} must be of one kind in all parts, got {' and '.join(sorted(kinds))}."
        )
    kind = kinds.pop()
    if kind == "names":
        names = sorted({str(name) for array in arrays.values() for name in array.tolist()})
        number = {name: i for i, name in enumerate(names)}
        found = {part: torch.tensor([number[str(n)] for n in a.tolist()]) for part, a in arrays.items()}
        return found, tuple(names)
    if kind == "classes":
        return {part: torch.from_numpy(a.astype(np.int64)) for part, a in arrays.items()}, _numbered(
            arrays, where
        )
    return {part: _numbers(array, f"{where} ({part})") for part, array in arrays.items()}, ()


def _array(targets: Any, where: str) -> np.ndarray:
    if isinstance(targets, Tensor):
        targets = targets.detach().cpu()
        targets = targets.float() if targets.dtype == torch.bfloat16 else targets
    try:
        array: np.ndarray = np.asarray(targets)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"targets of {where} must be of one shape: {str(error).partition(chr(10))[0]}."
        ) from None
    if array.ndim == 0 or not len(array):
        raise InputError(f"{where} must hold at least one example with a target, got none.")
    return array


def _kind(array: np.ndarray, where: str) -> str:
    if array.dtype.kind in "US" or (array.dtype == object and all(isinstance(x, str) for x in array.flat)):
        kind = "names"
    elif array.dtype.kind in "biu":
        kind = "classes"
    elif array.dtype.kind == "f":
        kind = "numbers"
    else:
        raise InputError(f"targets of {where} must be classes, names or numbers, got {_shown(array)}.")
    if array.ndim != 1 and not (kind == "numbers" and array.ndim == 2):
        raise InputError(
            f"targets of {where} must be a class for each example, or a row of floating-point numbers, "
            f"got {kind} of shape {array.shape}."
        )
    return kind


def _shown(array: np.ndarray) -> str:
    if array.dtype == object:
        odd = next(i for i, x in enumerate(array.flat) if not isinstance(x, str))
        return f"{array.flat[odd]!r} in row {odd}"
    return str(array.dtype)


def _numbered(arrays: Mapping[str, np.ndarray], where: str) -> tuple[str, ...]:
    lowest = min(int(array.min()) for array in arrays.values())
    highest = max(int(array.max()) for array in arrays.values())
    if lowest < 0 or highest >= _MOST_CLASSES:
        odd = lowest if lowest < 0 else highest
        raise InputError(
            f"class numbers of {where} must lie in 0..{_MOST_CLASSES - 1}, got {odd}; "
            "numbers to predict must be floating-point."
        )
    return tuple(str(i) for i in range(max(highest, 1) + 1))


def _numbers(array: np.ndarray, where: str) -> Tensor:
    numbers = torch.from_numpy(array.astype(np.float32))
    require_finite_rows(numbers, f"targets of {where}")
    return numbers


def require_finite_rows(numbers: Tensor, what: str) -> None:
    """Raises :class:`InputError` with the first row that has a number that is none, or is infinite."""
    flat = numbers.flatten(1) if numbers.dim() > 1 else numbers[:, None]
    odd = (~torch.isfinite(flat)).any(1).nonzero().flatten()
    if len(odd):
        row = int(odd[0])
        value = flat[row][~torch.isfinite(flat[row])][0].item()
        raise InputError(f"{what} must be finite numbers, got {value} in row {row}.")


def require_same_length(names: Sequence[str], things: Sequence[Any], where: str) -> None:
    """Raises :class:`InputError` unless all have as many examples, at least one."""
    lengths = [len(thing) for thing in things]
    if len(set(lengths)) > 1:
        counted = ", ".join(f"{n} of {name}" for n, name in zip(lengths, names, strict=True))
        raise InputError(f"{where} must have as many of each, got {counted}.")
    if not lengths[0]:
        raise InputError(f"{where} must hold at least one example, got none.")
