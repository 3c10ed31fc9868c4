"""One-hidden-layer ReLU networks on small regression problems, and how many kinks SAM leaves them."""

from lowland.relu.network import Network, interpolant_variation
from lowland.relu.problem import Regression, on_the_line, teacher_student
from lowland.relu.training import Result, Training, train

__all__ = [
    "Network",
    "Regression",
    "Result",
    "Training",
    "interpolant_variation",
    "on_the_line",
    "teacher_student",
    "train",
]
