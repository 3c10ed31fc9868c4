"""What a combination rule is."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Combine(Protocol):
    """A function of the two averaged gradients; called only if something was climbed.

    One that remembers, or that skips climbs, has hooks: :class:`~lowland.sam.Part`.
    """

    def __call__(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to train with, from those at ``w`` and at ``w + e``.

        Both are dense and in float32 or better; zero where only the other pass used a parameter.

        Args:
            gradient: The gradient at ``w``, averaged over the groups, one tensor per parameter.
            perturbed: That at ``w + e``, likewise.
        """
        ...
