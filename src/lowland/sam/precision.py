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
    Random bits are added below the last one that is kept, and cut: 16 for bfloat16, 13 for float16.

    Args:
        x: float32, any shape.
        dtype: A type of fewer digits.
        noise: Where the random numbers come from.
    """
    limits = torch.finfo(dtype)
    dropped = 24 - 1 + round(math.log2(limits.eps))  # of float32's bits
    bits = _random_bits(x, noise)
    rounded = (x.view(torch.int32) + (bits >> (_RANDOM - dropped))).bitwise_and_(-(1 << dropped))
    rounded = rounded.view(torch.float32)
    if limits.smallest_normal > torch.finfo(x.dtype).smallest_normal:
        step = limits.smallest_normal * limits.eps
        steps = x / step
        whole = steps.floor()
        up = bits * 2.0**-_RANDOM >= 1.0 - (steps - whole)
        small = whole.add_(up).mul_(step).copysign_(x)
        rounded = torch.where(x.abs() < limits.smallest_normal, small, rounded)
    return torch.where(x.isfinite(), rounded.clamp_(limits.min, limits.max), x).to(dtype)


_RANDOM = 16
"""Random bits per number."""


def _random_bits(x: Tensor, noise: Noise) -> Tensor:
    """One number below 2**16 for each of ``x``, int32: four of each draw of 64 bits."""
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=noise.generator(x.device))
    bits = words.view(torch.int16)[: x.numel()].view(x.shape).to(torch.int32)
    return bits.bitwise_and_(0xFFFF)
