"""What to return from the gradients at ``w`` and at ``w + e``.

A rule takes both, averaged over the groups, and returns the gradient to train with. No rule
(``combine=None``) is SAM: the gradient at ``w + e``.
"""

from lowland.sam.combine.look import Look
from lowland.sam.combine.rescaling import magnitude_only, stable
from lowland.sam.combine.rule import Combine
from lowland.sam.combine.weighted import DecoupledWeighted, SurrogateGap, Weighted

__all__ = [
    "Combine",
    "DecoupledWeighted",
    "Look",
    "SurrogateGap",
    "Weighted",
    "magnitude_only",
    "stable",
]
