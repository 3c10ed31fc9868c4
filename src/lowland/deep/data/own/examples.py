"""What was read of somebody's own data, before it is divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from lowland.deep.data.source import Inputs, Targets

PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}
"""The parts of a data set, and what folders, files and keys may call them."""


@dataclass(frozen=True)
class Raw:
    """Examples as somebody has them.

    Attributes:
        inputs: A tensor, an array, or a list of sequences of tokens.
        targets: A list or an array of class numbers, names of classes, or numbers.
        mask: Which tokens are no padding, if there is any.
    """

    inputs: Any
    targets: Any
    mask: Any = None


@dataclass(frozen=True)
class Found:
    """What was found where the data are.

    Attributes:
        form: What it is: ``image folder``, say.
        parts: ``train``, and perhaps ``validation`` and ``test``.
        notes: What was done to read it that is not obvious.
        sha256: Hash of all that was read; empty if it is known by its tensors only.
        classes: What class numbers stand for, if that is said.
    """

    form: str
    parts: Mapping[str, Raw]
    notes: tuple[str, ...] = ()
    sha256: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examples:
    """Examples as they are trained on: see :class:`~lowland.deep.data.Split`."""

    inputs: Inputs
    targets: Targets
    mask: Bool[Tensor, "n length"] | None = None

    def __len__(self) -> int:
        """How many."""
        return len(self.targets)

    def padded(self, length: int) -> Examples:
        """The same sequences, padded to a length."""
        assert self.mask is not None
        more = (0, length - self.inputs.shape[1])
        return Examples(F.pad(self.inputs, more), self.targets, F.pad(self.mask, more))


@dataclass(frozen=True)
class OwnData:
    """Data of somebody's own.

    Attributes:
        name: Where they are, as it was given.
        form: What that is: ``image folder``, say.
        parts: ``train``, and perhaps ``validation`` and ``test``.
        classes: Names of the classes; none if targets are numbers.
        notes: What was done to read them that is not obvious.
        sha256: Hash of all that was read.
    """

    name: str
    form: str
    parts: Mapping[str, Examples]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: str


def part_called(name: str) -> str | None:
    """The part that a folder, a file or a key of this name is, if it is one.

    Example:
        >>> part_called("val"), part_called("cats")
        ('validation', None)
    """
    return next((part for part, names in PARTS.items() if name.lower() in names), None)
