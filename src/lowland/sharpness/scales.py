"""Units in which perturbations of weights are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from lowland.errors import one_of
from lowland.sam.ascent import Adaptive

Scaling = Literal["plain", "element", "filter", "shifted"]
"""``plain``: 1; ``element``: each weight's size; ``filter``: the norm of those that make one output;
``shifted``: each weight's size and 1."""


def check_scaling(scaling: str) -> None:
    """Refuses scalings that there are not."""
    one_of("scaling", scaling, get_args(Scaling))


def scales(params: Sequence[Tensor], scaling: Scaling) -> list[Tensor | None]:
    """The unit c of each weight, of a shape that broadcasts with its parameter; ``None`` for 1."""
    if scaling == "plain":
        return [None] * len(params)
    if scaling == "shifted":
        return Adaptive(eta=1.0, by="element", scaled="*").scales(params, None)
    return Adaptive(eta=0.0, by=scaling, scaled="*").scales(params, None)


def in_units(tensors: Sequence[Tensor], units: Sequence[Tensor | None]) -> list[Tensor]:
    """Each tensor times its unit."""
    return [t if c is None else c * t for t, c in zip(tensors, units, strict=True)]
