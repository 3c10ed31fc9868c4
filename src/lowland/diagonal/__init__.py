"""Diagonal linear networks: sparse regression, the dynamics of GD and SAM, and the theory beside them."""

from lowland.diagonal.convergence import Convergence, Quadratics, loss_gap, mean_square_gradient
from lowland.diagonal.dynamics import Phase, Plan, Result, logged_iterations, sweep, train
from lowland.diagonal.problem import Problem, sparse_regression
from lowland.diagonal.theory import (
    Comparison,
    compare,
    effective_alpha,
    kkt_residual,
    loss,
    minimum_l1,
    minimum_l2,
    minimum_potential,
    potential,
    predicted_alpha,
)

__all__ = [
    "Comparison",
    "Convergence",
    "Phase",
    "Plan",
    "Problem",
    "Quadratics",
    "Result",
    "compare",
    "effective_alpha",
    "kkt_residual",
    "logged_iterations",
    "loss",
    "loss_gap",
    "mean_square_gradient",
    "minimum_l1",
    "minimum_l2",
    "minimum_potential",
    "potential",
    "predicted_alpha",
    "sparse_regression",
    "sweep",
    "train",
]
