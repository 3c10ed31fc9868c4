"""What an ascent is shown of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowland.sam.radii import Radii


@dataclass(frozen=True)
class Shown:
    """The weights that an ascent is shown: those that may move, of sparse gradients their rows only.

    Attributes:
        indices: The parameters, by number.
        ratios: Their radii in units of the largest.
        params: The parameters.
        w: What is shown of them.
        names: Their names, if they have some.
        rows: Which rows of them are shown; ``None`` for all.
        whole: Whether a vector of what is shown is one of the parameters as it is.
    """

    indices: Sequence[int]
    ratios: Sequence[float]
    params: list[Tensor]
    w: list[Tensor]
    names: list[str] | None
    rows: list[Tensor | None]
    whole: bool

    @classmethod
    def all_that_move(cls, radii: Radii, params: Sequence[Tensor], names: Sequence[str] | None) -> Shown:
        """Every parameter with a radius, whole."""
        moving = radii.moving(params)
        own = None if names is None else [names[i] for i in radii.indices]
        return cls(radii.indices, radii.ratios, moving, moving, own, [None] * len(moving), radii.even)

    def only(self, kept: Sequence[int], pieces: Sequence[tuple[Tensor, Tensor | None]]) -> Shown:
        """Some of the parameters, and of each what is shown of it and which rows these are."""
        rows = [r for _, r in pieces]
        return Shown(
            [self.indices[k] for k in kept],
            [self.ratios[k] for k in kept],
            [self.params[k] for k in kept],
            [w for w, _ in pieces],
            None if self.names is None else [self.names[k] for k in kept],
            rows,
            self.whole and all(r is None for r in rows),
        )
