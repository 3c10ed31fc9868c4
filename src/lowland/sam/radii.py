"""How far each parameter may move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Radii:
    """Radius of each parameter: which ones move, and how far beside the one that moves farthest.

    Attributes:
        rho: The largest radius; a tensor of one element while a step is recorded.
        indices: Parameters with a radius above zero.
        ratios: Their radii in units of ``rho``.
        partial: Whether some parameters do not move although others do.
    """

    rho: Any
    indices: list[int]
    ratios: list[float]
    partial: bool

    @classmethod
    def of(cls, rho: float | Sequence[float], num_params: int) -> Radii:
        """The same radius for all, or one for each."""
        radii = [float(rho)] * num_params if isinstance(rho, (int, float)) else [float(r) for r in rho]
        largest = max(radii, default=0.0)
        indices = [i for i, r in enumerate(radii) if r > 0.0]
        return cls(largest, indices, [radii[i] / largest for i in indices], 0 < len(indices) < num_params)

    @property
    def move(self) -> bool:
        """Whether any parameter may move."""
        return len(self.indices) > 0

    @property
    def wanted(self) -> list[int] | None:
        """The parameters whose gradients a climb needs; ``None`` if all."""
        return self.indices if self.partial else None

    @cached_property
    def even(self) -> bool:
        """Whether all that move have the same radius."""
        return all(ratio == 1.0 for ratio in self.ratios)

    def moving(self, all_: Sequence[Tensor]) -> list[Tensor]:
        """Those that may move."""
        return [all_[i] for i in self.indices]
