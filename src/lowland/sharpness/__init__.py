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

__all__ = [
    "Eigenvalues",
    "GaussNewton",
    "Measurement",
    "SpectralDensity",
    "Trace",
    "average_case",
    "gradient_norms",
    "hessian_eigenvalues",
    "hessian_trace",
    "one_step_sharpness",
    "sam_edge",
    "spectral_density",
]
