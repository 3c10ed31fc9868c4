"""What a look at the objective around the weights is, and what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lowland.sam.ascent.step import Weights
from lowland.sam.objective import Objective
from lowland.sam.vectors import Number, One, Vector

Drawn = Callable[[Weights], Sequence[Tensor] | None]
"""A perturbation of one group that needs no gradient."""


@dataclass(frozen=True)
class Pass:
    """What one pass over the examples of a look saw, where the weights stood.

    Attributes:
        losses: The objective of each group, without the scale; of a single one a scalar.
        aux: What the loss returned beside its value, group by group, or for each part of the one group.
        gradient: Each group's gradient times the scale, of all parameters or those asked for; absent where a
            parameter was not used; ``None`` if it was not asked for.
        mean: Its weighted mean over the groups, of all parameters; ``None`` if it was not asked for.
        realised: The l2 norm of each group's perturbation once the weights are rounded, and the share of
            the weights that it moved; ``None`` unless measured.
        connected: Whether any parameter got a gradient from the loss itself.
    """

    losses: Tensor
    aux: list[Any]
    gradient: Vector | None = None
    mean: One | None = None
    realised: tuple[Number, Number] | None = None
    connected: bool = True

    def without_gradient(self) -> Pass:
        """The same without its gradients, whose memory is then free."""
        return replace(self, gradient=None, mean=None)


@runtime_checkable
class Look(Protocol):
    """The objective of one group or of several, each at weights of its own.

    Every pass sees the same world: examples, random draws, buffers. The ``first`` one is given the user's own
    examples and stands for the pass of plain training; what it leaves is what there is afterwards.

    Attributes:
        objective: The loss, its parameters and policies.
    """

    objective: Objective

    @property
    def masses(self) -> Float[Tensor, " groups"]:
        """Weight of each group in means, on the CPU, in double precision."""
        ...

    def same_world(self) -> AbstractContextManager[object]:
        """The block of all passes."""
        ...

    def slope(self, e: Any, *, first: bool = False) -> Pass:
        """The gradient of each group at ``w + e``."""
        ...

    def mean(self, e: Any, *, first: bool = False) -> Pass:
        """The mean gradient of the groups at ``w + e``, which is used up."""
        ...

    def value(self, e: Any, *, first: bool = False) -> Pass:
        """The objectives at ``w + e``, without a gradient."""
        ...

    def shown(self, seen: Pass) -> Vector:
        """What an ascent is shown of a pass: the gradient of the weights that may move, without the scale."""
        ...

    def drawn(self, ask: Drawn) -> Vector | None:
        """A perturbation of each group that needs no gradient."""
        ...

    def everywhere(self, e: Any) -> Vector:
        """A perturbation of all parameters, each in its own radius; absent where one does not move."""
        ...

    def weights(self, e: Any) -> Vector:
        """Each group's ``w + e``, all parameters."""
        ...

    def summed(self, v: Any) -> One:
        """The weighted mean over the groups of a vector of all parameters."""
        ...
