"""How flat a model is: curvature, gradient norms, and the rise of the loss nearby."""

from lowland.sharpness.average_case import average_case
from lowland.sharpness.connectivity import Bezier, along_curve, trained_bezier
from lowland.sharpness.curved import GaussNewton
from lowland.sharpness.density import SpectralDensity, spectral_density
from lowland.sharpness.diagonal import Diagonal, hessian_diagonal
from lowland.sharpness.directions import gradient_direction, plane_through, random_direction
from lowland.sharpness.edge import sam_edge
from lowland.sharpness.eigenvalues import Eigenvalues, hessian_eigenvalues
from lowland.sharpness.features import ActiveReLUs, feature_rank, features_at, knn_error
from lowland.sharpness.first_order import gradient_norms, one_step_sharpness
from lowland.sharpness.fisher import empirical_fisher, fisher_rao_norm, monte_carlo_fisher
from lowland.sharpness.keskar import keskar_sharpness
from lowland.sharpness.landscape import barrier, interpolation, plane
from lowland.sharpness.logits import normalized_logits
from lowland.sharpness.measurement import Measurement
from lowland.sharpness.relative_flatness import relative_flatness
from lowland.sharpness.search import AutoPGD, ProjectedAscent
from lowland.sharpness.solution import Solution, hessian_solve
from lowland.sharpness.states import at_state, distances, state_of
from lowland.sharpness.suboptimality import suboptimality
from lowland.sharpness.trace import Trace, hessian_trace
from lowland.sharpness.worst_case import WorstCase, worst_case, worst_case_grid

__all__ = [
    "ActiveReLUs",
    "AutoPGD",
    "Bezier",
    "Diagonal",
    "Eigenvalues",
    "GaussNewton",
    "Measurement",
    "ProjectedAscent",
    "Solution",
    "SpectralDensity",
    "Trace",
    "WorstCase",
    "along_curve",
    "at_state",
    "average_case",
    "barrier",
    "distances",
    "empirical_fisher",
    "feature_rank",
    "features_at",
    "fisher_rao_norm",
    "gradient_direction",
    "gradient_norms",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "hessian_solve",
    "hessian_trace",
    "interpolation",
    "keskar_sharpness",
    "knn_error",
    "monte_carlo_fisher",
    "normalized_logits",
    "one_step_sharpness",
    "plane",
    "plane_through",
    "random_direction",
    "relative_flatness",
    "sam_edge",
    "spectral_density",
    "state_of",
    "suboptimality",
    "trained_bezier",
    "worst_case",
    "worst_case_grid",
]
