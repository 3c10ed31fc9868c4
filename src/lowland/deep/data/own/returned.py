"""What a function of somebody's own returns: arrays, or map-style data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lowland.deep.data.own.arrays import parts_of_arrays
from lowland.deep.data.own.examples import Raw, part_called
from lowland.deep.functions import called, errors_told
from lowland.deep.seeding import generators_kept, seed_all
from lowland.errors import InputError

_WANTED = (
    "(x, y), a map-style Dataset of such pairs, a mapping with x and y, "
    "or a mapping of train, val and test to these"
)


def parts_returned_by(name: str) -> dict[str, Raw]:
    """The parts that ``package.module:function`` returns.

    What it draws at random is drawn from generators of a fixed seed, which are put back.

    Raises:
        InputError: If there is no such function, it fails, or it returns something else.
    """
    with generators_kept(), errors_told(f"data {name} must be examples that can be read"):
        seed_all(0)
        found = called(name, "data")
        if isinstance(found, Mapping) and found and all(part_called(str(key)) for key in found):
            return _by_part(found, name)
        if isinstance(found, Mapping):
            return parts_of_arrays(found, f"data {name}")
        return {"train": _raw(found, f"data {name}")}


def _by_part(found: Mapping[Any, Any], name: str) -> dict[str, Raw]:
    parts: dict[str, Raw] = {}
    for key, part in found.items():
        called_ = part_called(str(key))
        assert called_ is not None
        if called_ in parts:
            raise InputError(f"data {name} must return each part once, got {', '.join(map(str, found))}.")
        parts[called_] = _raw(part, f"data {name} ({key})")
    if "train" not in parts:
        raise InputError(f"data {name} must return a part train, got {', '.join(map(str, found))}.")
    return {part: parts[part] for part in ("train", "validation", "test") if part in parts}


def _raw(part: Any, where: str) -> Raw:
    if isinstance(part, Mapping):
        found = parts_of_arrays(part, where)
        if set(found) != {"train"}:
            raise InputError(f"{where} must hold x and y of one part, got {', '.join(map(str, part))}.")
        return found["train"]
    if isinstance(part, tuple) and any(isinstance(one, Dataset) for one in part):
        raise InputError(f"{where} must be a mapping of train and test to data sets, got {_shown(part)}.")
    if isinstance(part, tuple) and len(part) == 2 and not _is_example(part):
        return Raw(*part)
    if isinstance(part, tuple) or not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        raise InputError(f"{where} must be {_WANTED}, got {_shown(part)}.")
    return _of_dataset(part, where)


def _of_dataset(dataset: Any, where: str) -> Raw:
    """All examples of a map-style data set, in its order."""
    inputs, targets = [], []
    for i in range(len(dataset)):
        with errors_told(f"example {i} of {where} must be there"):
            example = dataset[i]
        if not isinstance(example, (tuple, list)) or len(example) != 2:
            raise InputError(
                f"example {i} of {where} must be an input and its target, got {_shown(example)}."
            )
        inputs.append(_input(example[0]))
        targets.append(_target(example[1], i, where))
    if not inputs:
        raise InputError(f"{where} must hold at least one example, got none.")
    return Raw(_joined(inputs, where), targets)


def _input(value: Any) -> Any:
    """A picture as its pixels, channels first; other inputs as they are."""
    if isinstance(value, Image.Image):
        pixels = np.asarray(value if value.mode in ("L", "RGB", "RGBA") else value.convert("RGB"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())
    return value


def _joined(inputs: list[Any], where: str) -> Any:
    """One array where the shapes are the same; sequences of several lengths stay a list."""
    shapes = {tuple(np.shape(one)) for one in inputs}
    if len(shapes) > 1 and any(len(shape) != 1 for shape in shapes):
        several = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise InputError(f"inputs of {where} must be of one shape, or sequences, got {several}.")
    return inputs if len(shapes) > 1 else torch.stack([torch.as_tensor(one) for one in inputs])


def _target(value: Any, i: int, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else value.detach().cpu().numpy()
    if isinstance(value, (str, int, float, np.ndarray, np.generic, list, tuple)):
        return value
    raise InputError(
        f"the target of example {i} of {where} must be a class, its name or numbers, got {value!r}."
    )


def _is_example(pair: tuple[Any, Any]) -> bool:
    """Whether a pair is no pair of arrays."""
    return not all(hasattr(one, "__len__") for one in pair)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(one).__name__ for one in value)}"
    return type(value).__name__
