"""What a vector is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lowland.sam.vectors.number import Number
from lowland.sam.vectors.shown import Shown


class Vector(Sequence[Any]):
    """A gradient or a perturbation: a tensor per weight, of one group or of each of many.

    As a sequence it is these tensors, formed; of many groups they have an axis in front.

    Attributes:
        at: The weights that it belongs to, where an ascent was shown some.
        kept: Whether it is needed for more than one pass at the end of a climb.
    """

    at: Shown | None
    kept: bool = False

    @abstractmethod
    def asked(self, ascent: Callable[[Any], Any], step: Any) -> Vector | None:
        """What ``ascent`` makes of a step along this vector; ``None`` where there is nowhere to climb."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether the norm is, of each group."""

    @abstractmethod
    def norm(self) -> Number:
        """The l2 norm of all tensors together."""

    @property
    @abstractmethod
    def is_known_zero(self) -> bool:
        """Whether the norm is known to be 0, without asking for it."""

    @abstractmethod
    def cosine(self, other: Any) -> Number:
        """The cosine between two vectors; NaN if one is zero or not finite."""

    @abstractmethod
    def scaled(self, factor: Number) -> Vector:
        """``factor`` times the vector."""

    @abstractmethod
    def plus(self, other: Any) -> Vector:
        """The sum."""

    @abstractmethod
    def times(self, units: Sequence[Tensor | None]) -> Vector:
        """The product with a tensor per weight, the same for all groups; ``None`` for 1."""

    @property
    @abstractmethod
    def largest_factor(self) -> float:
        """The largest number that the tensors can be multiplied with, in float32 or better."""
