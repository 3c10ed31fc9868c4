"""How flat a model is: curvature, gradient norms, and the rise of the loss nearby."""

from lowland.sharpness.average_case import average_case
from lowland.sharpness.curvature import (
    Eigenvalues,
    GaussNewton,
    SpectralDensity,
    Trace,
    hessian_eigenvalues,
    hessian_trace,
    sam_edge,
    spectral_density,
)
from lowland.sharpness.first_order import gradient_norms, one_step_sharpness
from lowland.sharpness.measurement import Measurement
from lowland.sharpness.search import AutoPGD, ProjectedAscent
from lowland.sharpness.worst_case import WorstCase, suboptimality, worst_case, worst_case_grid

__all__ = [
    "AutoPGD",
    "Eigenvalues",
    "GaussNewton",
    "Measurement",
    "ProjectedAscent",
    "SpectralDensity",
    "Trace",
    "WorstCase",
    "average_case",
    "gradient_norms",
    "hessian_eigenvalues",
    "hessian_trace",
    "one_step_sharpness",
    "sam_edge",
    "spectral_density",
    "suboptimality",
    "worst_case",
    "worst_case_grid",
]
