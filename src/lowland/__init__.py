"""Lowland: sharpness-aware minimization as a gradient."""

from lowland import presets
from lowland.sam import (
    L2,
    SAM,
    Adaptive,
    ClippedUnnormalized,
    MicroBatches,
    SAMOptimizer,
    Unnormalized,
    perturbed,
    sam_gradient,
)

__all__ = [
    "L2",
    "SAM",
    "Adaptive",
    "ClippedUnnormalized",
    "MicroBatches",
    "SAMOptimizer",
    "Unnormalized",
    "perturbed",
    "presets",
    "sam_gradient",
]
__version__ = "0.1.0"
