"""A list of tensors times a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import Tensor


class Scaled(Sequence[Tensor]):
    """``factor * tensor`` for every one of ``tensors``, multiplied only when an element is asked for.

    What moves the weights multiplies and adds in one go, so that a climb along the gradient needs no
    copy of it.

    Args:
        tensors: The tensors; not written to.
        factor: The number.

    Example:
        >>> import torch
        >>> list(Scaled([torch.ones(2)], 3.0))
        [tensor([3., 3.])]
    """

    def __init__(self, tensors: Sequence[Tensor], factor: float) -> None:
        self.tensors = tensors
        self.factor = factor

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Scaled: ...

    def __getitem__(self, index: int | slice) -> Tensor | Scaled:
        if isinstance(index, slice):
            return Scaled(self.tensors[index], self.factor)
        return self.tensors[index] * self.factor

    def __len__(self) -> int:
        return len(self.tensors)
