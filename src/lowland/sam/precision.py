"""Arithmetic on weights and gradients of few digits: in float32, and rounded without bias."""

import math

import torch
from torch import Tensor

from lowland.sam.noise import Noise

HALF = {torch.float16, torch.bfloat16}
"""Types with fewer digits than float32."""


def is_half(tensor: Tensor) -> bool:
    """Whether ``tensor`` has fewer digits than float32 (float16, bfloat16)."""
    return tensor.dtype in HALF


def working(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 or better: itself unless it has fewer digits."""
    return tensor.float() if is_half(tensor) else tensor


def wide(device: torch.device) -> torch.dtype:
    """Double precision, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def stochastically_rounded(x: Tensor, dtype: torch.dtype, noise: Noise) -> Tensor:
    r"""``x`` in ``dtype``, rounded up or down at random so that the mean is ``x``.

    A small perturbation of a bfloat16 weight, rounded to the nearest, is mostly no perturbation. Rounded
    with probability :math:`(x - \lfloor x \rfloor) / (\lceil x \rceil - \lfloor x \rfloor)` upwards, its
    mean is right, and with it every sum over many weights. Numbers that ``dtype`` holds stay as they are.

    Args:
        x: float32, any shape.
        dtype: A type of fewer digits.
        noise: Where the random numbers come from.
    """
    limits = torch.finfo(dtype)
    digits = 1 - round(math.log2(limits.eps))
    smallest = round(math.log2(limits.smallest_normal * limits.eps))
    _, exponent = torch.frexp(x)
    exponent = (exponent - digits).clamp_(min=smallest)
    scaled = _ldexp(x, -exponent)
    below = scaled.floor()
    chance = torch.rand(x.shape, device=x.device, generator=noise.generator(x.device))
    rounded = _ldexp(torch.where(chance < scaled - below, below + 1, below), exponent)
    return torch.where(x.isfinite(), rounded.clamp_(limits.min, limits.max), x).to(dtype)


def _ldexp(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * 2**exponent`` in two steps: the whole power may be beyond float32 (pytorch/pytorch#153069)."""
    half = exponent // 2
    return torch.ldexp(torch.ldexp(x, half), exponent - half)
