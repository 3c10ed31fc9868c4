"""What a combination rule is."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Combine(Protocol):
    """A function of the two averaged gradients; called only if something was climbed."""

    def __call__(self, gradient: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to train with, from those at ``w`` and at ``w + e``.

        Both are dense and in float32 or better; zero where only the other pass used a parameter.
        """
        ...


@runtime_checkable
class ReusingCombine(Combine, Protocol):
    """A rule that climbs in some steps and reuses what it found in the others, which cost one pass."""

    def climbs(self, step: int) -> bool:
        """Whether ``step``, counted from 0, is to climb."""
        ...

    def reuse(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to train with in a step that does not climb, from the one at ``w``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it found."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned."""
        ...
