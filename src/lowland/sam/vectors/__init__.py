"""Gradients and perturbations, with the same few operations for one group and for many."""

from lowland.sam.vectors.number import Number, any_of, at_most, largest_factor, over, where_positive
from lowland.sam.vectors.one import One
from lowland.sam.vectors.shown import Shown
from lowland.sam.vectors.vector import Vector

__all__ = [
    "Number",
    "One",
    "Shown",
    "Vector",
    "any_of",
    "at_most",
    "largest_factor",
    "over",
    "where_positive",
]
