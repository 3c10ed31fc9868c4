"""Which arguments of the m-SAM gradient are refused, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from lowland.sam.ascent import Ascent, BlindAscent, StartingAscent
from lowland.sam.batch import MicroBatches
from lowland.sam.buffers import BatchNormStats
from lowland.sam.combine import Combine
from lowland.sam.kinds import is_a
from lowland.sam.objective import Reduction

Engine = Literal["auto", "loop", "batched"]
"""``loop``: one group after the other; ``batched``: all at once; ``auto``: whichever is faster."""


def check_params(params: Sequence[Tensor]) -> None:
    """Refuses params that cannot be climbed."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "SAM needs gradients: it must be called outside torch.inference_mode, got it inside."
        )
    if not params:
        raise ValueError("params must hold at least one tensor that requires a gradient, got none.")
    for p in params:
        if not isinstance(p, Tensor):
            raise TypeError(f"params must be tensors, got {type(p).__name__}.")
        if isinstance(p, UninitializedParameter):
            raise ValueError(
                "params must be initialized, got one of a lazy module: give it a batch before the first step."
            )
        if p.device.type == "meta":
            raise ValueError("params must have memory, got one on the device meta.")
        if not p.is_floating_point():
            raise TypeError(f"params must be real floating-point tensors, got {p.dtype}.")
        if not (p.is_leaf and p.requires_grad):
            raise ValueError(
                "params must be leaf tensors that require gradients, "
                f"got is_leaf={p.is_leaf} and requires_grad={p.requires_grad}."
            )
    if len({id(p) for p in params}) < len(params):
        raise ValueError("params must be different tensors, got one twice.")


def check_numbers(*, m: int | None, steps: int, step_size: float, l2: float, scale: float) -> None:
    """Refuses numbers out of their range."""
    if not (math.isfinite(l2) and l2 >= 0):
        raise ValueError(f"l2 must be non-negative and finite, got {l2}.")
    for name, value in (("step_size", step_size), ("scale", scale)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    for name, count in (("m", 1 if m is None else m), ("steps", steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive whole number, got {count!r}.")


def check_engine(engine: str, max_memory: int | None) -> None:
    """Refuses engines that there are not."""
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {get_args(Engine)}, got {engine!r}.")
    whole = isinstance(max_memory, int) and not isinstance(max_memory, bool)
    if max_memory is not None and not (whole and max_memory > 0):
        raise ValueError(f"max_memory must be a positive number of bytes or None, got {max_memory!r}.")


def check_reduction(reduction: str) -> None:
    """Refuses reductions that there are not."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}.")


def names_of(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names of entries of a batch, if they are such."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{option} must be a list of names of entries, got {names!r}.")
    return tuple(names)


def check_rho(rho: float | Sequence[float], num_params: int) -> None:
    """Refuses radii that are none."""
    radii = [rho] if isinstance(rho, (int, float)) else list(rho)
    if not isinstance(rho, (int, float)) and len(radii) != num_params:
        raise ValueError(f"rho must be one radius or one per parameter, {num_params}, got {len(radii)}.")
    for radius in radii:
        if not (math.isfinite(radius) and radius >= 0):
            raise ValueError(f"rho must be non-negative and finite, got {radius}.")


def check_choices(
    ascent: Ascent | BlindAscent,
    bn_stats: str,
    steps: int,
    ascent_batch: Sequence[Any] | MicroBatches | None,
    combine: Combine | None,
) -> None:
    """Refuses choices that there are not, and combinations that mean nothing."""
    if bn_stats not in get_args(BatchNormStats):
        raise ValueError(f"bn_stats must be one of {get_args(BatchNormStats)}, got {bn_stats!r}.")
    name = type(ascent).__name__
    if steps > 1 and getattr(ascent, "one_step", False):
        raise ValueError(f"steps must be 1 with {name}, got {steps}.")
    if is_a(ascent, StartingAscent):
        if steps > 1:
            raise ValueError(f"steps must be 1 with {name}, which starts elsewhere, got {steps}.")
        if combine is not None:
            raise ValueError(f"combine must be None with {name}, which starts elsewhere, got {combine!r}.")
    if is_a(ascent, BlindAscent):
        if steps > 1:
            raise ValueError(f"steps must be 1 with {name}, which needs no gradient, got {steps}.")
        if ascent_batch is not None:
            raise ValueError(f"ascent_batch must be None with {name}, which needs no gradient, got a batch.")
    elif not callable(ascent):
        raise TypeError(f"ascent must be an Ascent or a BlindAscent, got {type(ascent).__name__}.")


def loss_arguments(name: str, batch: Any) -> Sequence[Any] | MicroBatches:
    """``batch``, if it is one."""
    if isinstance(batch, (tuple, list, MicroBatches)):
        return batch
    raise TypeError(
        f"{name} must be the tuple of the loss's arguments or MicroBatches, got {type(batch).__name__}."
    )
