"""Which form of a group's gradient is cheaper: a sum of outer products, or formed.

Both forms cost the norm, the perturbed forward pass and its input gradient, beyond what all groups share:

    apart:   the inner products of inputs twice (norm, forward), of output gradients twice (norm, backward),
             and a product with either,  6 G R^2 (p + q)                                    operations
    formed:  one product per group,      2 G R p q                                          operations
             and reading and writing the weights of every group,  G p q                     elements

For a convolution of R output and I input positions, c channels and k^d weights a filter and channel, p is c
and its R is I, and the inner products of patches are sums of k d of those of points, three times.

The constants are times relative to one operation of a large matrix product, from the kernels timed in
``benchmarks/kernels.py`` (docs/batched_engine.md has its table). The choice is by shape only, so that the
same run gives the same result everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

ELEMENT = 110.0
"""A formed weight of a linear layer: written, scaled, read in two products."""

FILTER_ELEMENT = 900.0
"""The same of a convolution, whose kernels reorder the weights of every group first."""

POINT_ELEMENT = 150.0
"""An inner product of two input positions, added to those of patches once."""


@dataclass(frozen=True)
class Costs:
    """Operations of a group in either form, beyond what all groups share.

    Attributes:
        apart: Kept as outer products.
        formed: Formed.
    """

    apart: float
    formed: float

    @property
    def forms(self) -> bool:
        """Whether to form."""
        return self.formed < self.apart


def costs_of_linear(rows: int, q: int, p: int) -> Costs:
    """A ``q x p`` matrix that multiplies that many rows of a group."""
    return Costs(6.0 * rows**2 * (p + q), 2.0 * rows * p * q + ELEMENT * p * q)


def costs_of_convolution(
    rows: int, points: int, q: int, channels: int, window: Sequence[int], groups: int
) -> Costs:
    """A convolution of ``points`` input positions to ``rows`` output positions of a group, of ``groups``."""
    p = channels * math.prod(window)
    shifts = 0 if rows == points and math.prod(window) == 1 else sum(window)
    apart = 6.0 * (rows**2 * q + points**2 * channels) + 3.0 * POINT_ELEMENT * shifts * points**2
    element = FILTER_ELEMENT if groups > 1 else ELEMENT
    return Costs(apart, 2.0 * rows * p * q + element * p * q)


def costs_of_embedding(rows: int, q: int, p: int) -> Costs:
    """An embedding of ``q`` rows, looked up ``rows`` times."""
    return Costs(6.0 * rows**2 * p, ELEMENT * p * q)


@dataclass(frozen=True)
class Product:
    """A use of a weight as a matrix by one group.

    Attributes:
        rows: Rows R that it multiplies.
        q: Its rows.
        p: Its columns.
        extra: Operations of the norm, and of the perturbed pass beyond what an ordinary one takes.
    """

    rows: int
    q: int
    p: int
    extra: float


@dataclass(frozen=True)
class Machine:
    """Speeds of a device, rounded.

    Attributes:
        operations: Of a large matrix product, per second.
        bytes: Of memory, per second.
        launch: Seconds to start an operation of a pass and of its backward pass, one group at a time.
        launch_all: The same for all groups at once, through ``vmap``.
        group: Seconds that a group costs whatever its size, in the loop.
        chunk: The same for all groups at once.
    """

    operations: float
    bytes: float
    launch: float
    launch_all: float
    group: float
    chunk: float


def machine(device: torch.device, *, captured: bool = False) -> Machine:
    """What to reckon with on ``device``, where groups at once are run by recorded steps or are not."""
    if device.type != "cpu":
        found = Machine(3e13, 1.5e12, 30e-6, 120e-6, 2e-3, 5e-3)
    else:
        threads = min(torch.get_num_threads(), 16)
        found = Machine(4e10 * threads, 8e9, 80e-6, 240e-6, 8e-4, 8e-3)
    return replace(found, launch_all=found.launch_all / 5, chunk=found.chunk / 5) if captured else found


def around(groups: int, params: int, at: Machine) -> float:
    """Seconds that the loop takes around the passes: gradient, copy, move, copy back, accumulation."""
    return groups * (4.0 * 6 * params / at.bytes + at.group)


def seconds(
    products: Sequence[Product], groups: int, chunks: int, *, calls: int, params: int, at: Machine
) -> tuple[float, float]:
    """Time of a call by the loop and for all groups at once, without what both have in common.

    Args:
        products: The uses of weights by one group.
        groups: Number of groups.
        chunks: Number of chunks they are run in.
        calls: Operations of the loss.
        params: Number of weights.
        at: Where.
    """

    def pass_over(times: int) -> float:
        """One product of every use, with ``times`` as many rows."""
        return sum(
            max(2.0 * times * u.rows * u.p * u.q / at.operations, 4.0 * u.p * u.q / at.bytes)
            for u in products
        )

    loop = around(groups, params, at) + groups * (6 * pass_over(1) + 2 * calls * at.launch)
    extra = groups * sum(u.extra for u in products) / at.operations
    together = chunks * (5 * pass_over(-(-groups // chunks)) + at.chunk + 2 * calls * at.launch_all)
    return loop, together + extra
