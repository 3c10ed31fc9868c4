"""Sharpness-aware minimization as a gradient."""

from lowland.sam.ascent import (
    L2,
    Adaptive,
    AlongMomentum,
    Ascent,
    AscentStep,
    BlindAscent,
    ClippedUnnormalized,
    Friendly,
    Preconditioned,
    Random,
    RandomSubset,
    RememberingAscent,
    StartingAscent,
    Unified,
    Unnormalized,
)
from lowland.sam.batch import MicroBatches
from lowland.sam.bayesian import BSAM, BayesianAscent
from lowland.sam.buffers import BatchNormStats
from lowland.sam.captures import Captures
from lowland.sam.choose import norm_layers
from lowland.sam.combine import (
    Combine,
    DecoupledWeighted,
    Look,
    SurrogateGap,
    Weighted,
    magnitude_only,
    stable,
)
from lowland.sam.diagnostics import Diagnostics
from lowland.sam.functional import Functional
from lowland.sam.gradient import sam_gradient
from lowland.sam.norm import l2_norm
from lowland.sam.part import Call, Part
from lowland.sam.perturb import perturbed, weights_are_perturbed
from lowland.sam.ranks import examples_scale
from lowland.sam.schedule import Cosine, ProportionalToLR, Window
from lowland.sam.shell import SAM
from lowland.sam.source import AscentSource, FromLoader, PreviousBatch
from lowland.sam.total import SAMGradient
from lowland.sam.trainers import SAMOptimizer

__all__ = [
    "BSAM",
    "L2",
    "SAM",
    "Adaptive",
    "AlongMomentum",
    "Ascent",
    "AscentSource",
    "AscentStep",
    "BatchNormStats",
    "BayesianAscent",
    "BlindAscent",
    "Call",
    "Captures",
    "ClippedUnnormalized",
    "Combine",
    "Cosine",
    "DecoupledWeighted",
    "Diagnostics",
    "Friendly",
    "FromLoader",
    "Functional",
    "Look",
    "MicroBatches",
    "Part",
    "Preconditioned",
    "PreviousBatch",
    "ProportionalToLR",
    "Random",
    "RandomSubset",
    "RememberingAscent",
    "SAMGradient",
    "SAMOptimizer",
    "StartingAscent",
    "SurrogateGap",
    "Unified",
    "Unnormalized",
    "Weighted",
    "Window",
    "examples_scale",
    "l2_norm",
    "magnitude_only",
    "norm_layers",
    "perturbed",
    "sam_gradient",
    "stable",
    "weights_are_perturbed",
]
