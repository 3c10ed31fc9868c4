"""Where a group climbs, and how far."""

from lowland.sam.ascent.adaptive import Adaptive
from lowland.sam.ascent.ball import L2, ClippedUnnormalized, Unified, Unnormalized
from lowland.sam.ascent.blind import AlongMomentum, Random
from lowland.sam.ascent.friendly import Friendly
from lowland.sam.ascent.preconditioned import Preconditioned
from lowland.sam.ascent.step import (
    Ascent,
    AscentStep,
    BlindAscent,
    RememberingAscent,
    StartingAscent,
    Weights,
)
from lowland.sam.ascent.subset import RandomSubset

__all__ = [
    "L2",
    "Adaptive",
    "AlongMomentum",
    "Ascent",
    "AscentStep",
    "BlindAscent",
    "ClippedUnnormalized",
    "Friendly",
    "Preconditioned",
    "Random",
    "RandomSubset",
    "RememberingAscent",
    "StartingAscent",
    "Unified",
    "Unnormalized",
    "Weights",
]
