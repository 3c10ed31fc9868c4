"""Sharpness-aware minimization as a gradient."""

from lowland.sam.ascent import L2, Ascent, AscentStep, ClippedUnnormalized, Unnormalized
from lowland.sam.buffers import BatchNormStats
from lowland.sam.combine import Combine, magnitude_only
from lowland.sam.gradient import Diagnostics, SAMGradient, sam_gradient
from lowland.sam.norm import l2_norm
from lowland.sam.perturb import perturbed
from lowland.sam.shell import SAM

__all__ = [
    "L2",
    "SAM",
    "Ascent",
    "AscentStep",
    "BatchNormStats",
    "ClippedUnnormalized",
    "Combine",
    "Diagnostics",
    "SAMGradient",
    "Unnormalized",
    "l2_norm",
    "magnitude_only",
    "perturbed",
    "sam_gradient",
]
