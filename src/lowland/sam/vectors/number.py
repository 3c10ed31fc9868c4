"""Arithmetic on what a norm is: a float of one group, or a tensor with a number for each of many."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lowland.sam.asked import holds

Number = float | Tensor
"""Of one group, or of each: shape ``(groups,)``."""


def over(a: Number, b: Number, largest: float, *, at_zero: float = 0.0) -> Number:
    """``a / b``; ``at_zero`` where ``b`` is 0 or the quotient is above ``largest``."""
    if isinstance(b, Tensor):
        quotient = b.reciprocal() * a  # as torch divides a number: where a step is recorded, it is a tensor
        return torch.where((b > 0.0) & (quotient <= largest), quotient, torch.full_like(b, at_zero))
    return a / b if b > 0.0 and a / b <= largest else at_zero


def largest_factor(types: Iterable[torch.dtype]) -> float:
    """The largest number that tensors of these types can be multiplied with, in float32 or better."""
    found = {torch.promote_types(dtype, torch.float32) for dtype in types}
    return min((torch.finfo(dtype).max for dtype in found), default=math.inf)


def at_most(most: float, x: Number) -> Number:
    """The smaller of the two."""
    return x.clamp(max=most) if isinstance(x, Tensor) else min(most, x)


def where_positive(condition: Number, a: Number) -> Number:
    """``a`` where ``condition`` is above 0, else 0."""
    if isinstance(condition, Tensor):
        return torch.where(condition > 0.0, a, torch.zeros_like(condition))
    return a if condition > 0.0 else 0.0


def any_of(condition: Tensor | bool) -> bool:
    """Whether it holds for some group."""
    return holds(condition.any() if isinstance(condition, Tensor) else condition)
