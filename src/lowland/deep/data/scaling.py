"""Inputs of mean 0 and variance 1, channel by channel or feature by feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from lowland.deep.data.augment import to_float
from lowland.errors import InputError

_BLOCK = 4096


@dataclass(frozen=True)
class Scaling:
    """What is subtracted from inputs, and what they are then divided by.

    Attributes:
        mean: Of the training examples, broadcast to one of them.
        deviation: Their standard deviation; 1 where it is 0.
    """

    mean: Float32[Tensor, "..."]
    deviation: Float32[Tensor, "..."]

    @classmethod
    def of(cls, inputs: Shaped[Tensor, "n ..."]) -> Scaling:
        """Of images by channel, of other inputs by each of their numbers."""
        over, shape = ((0, 2, 3), (-1, 1, 1)) if inputs.dim() == 4 else ((0,), inputs.shape[1:])
        count = len(inputs) * (inputs[0, 0].numel() if inputs.dim() == 4 else 1)
        parts = torch.split(inputs, _BLOCK)
        mean = sum((to_float(part).double().sum(over) for part in parts), torch.zeros(())) / count
        mean = mean.reshape(shape)
        squares = ((to_float(part).double() - mean).square().sum(over) for part in parts)
        variance = (sum(squares, torch.zeros(())) / count).reshape(shape)
        return cls(mean.float(), torch.where(variance > 0, variance.sqrt(), 1.0).float())

    @property
    def _leading(self) -> torch.Size:
        """What inputs must begin with: the channels of images, the shape of features."""
        return self.mean.shape[:1] if self.mean.shape[1:] == (1, 1) else self.mean.shape

    def __call__(self, inputs: Shaped[Tensor, "n ..."]) -> Float32[Tensor, "n ..."]:
        """Inputs of such a shape, scaled.

        Raises:
            InputError: If they are of another shape.
        """
        if inputs.shape[1 : 1 + len(self._leading)] != self._leading:
            raise InputError(
                f"inputs must begin with the dimensions {tuple(self._leading)}, in which others were "
                f"standardized, got {tuple(inputs.shape[1:])}."
            )
        return (to_float(inputs) - self.mean) / self.deviation
