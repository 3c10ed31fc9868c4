"""Which form of a group's gradient is cheaper: a sum of outer products, or formed.

Both forms cost the norm, the perturbed forward pass and its input gradient:

    low rank:  two Grams, and twice a product through the rows,   6 G R^2 (p + q)     operations
    formed:    one product per group,                             2 G R p q           operations
               and reading and writing the weights of every group,  G p q             elements

where the low rank form also needs the shared products that the formed one replaces, so that these cancel.
The constants are times relative to one operation of a large matrix product, from the kernels timed in
``benchmarks/kernels.py`` (docs/batched_engine.md has its table). The choice is by shape only, so that the
same run gives the same result everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ELEMENT = 110.0
"""A formed weight of a linear layer: written, scaled, read in two products."""

FILTER_ELEMENT = 900.0
"""The same of a convolution, whose kernels reorder the weights of every group first."""

PATCH_ELEMENT = 600.0
"""An element of the patches that a convolution is taken apart into, copied four times."""


def form_linear(rows: int, q: int, p: int) -> bool:
    """Whether to form a group's ``q x p`` gradient with that many rows."""
    return 2 * rows * p * q + ELEMENT * p * q < 6 * rows**2 * (p + q)


def form_convolution(rows: int, q: int, p: int, *, groups: int, pointwise: bool) -> bool:
    """The same for a convolution with ``p`` weights per filter; ``pointwise``: its patches are its input."""
    patches = 0.0 if pointwise else PATCH_ELEMENT * rows * p
    element = FILTER_ELEMENT if groups > 1 else ELEMENT
    return 2 * rows * p * q + element * p * q < 6 * rows**2 * (p + q) + patches


def form_embedding(rows: int, q: int, p: int) -> bool:
    """The same for an embedding of ``q`` rows, looked up ``rows`` times."""
    return ELEMENT * p * q < 6 * rows**2 * p


@dataclass(frozen=True)
class Product:
    """A use of a weight as a matrix by one group.

    Attributes:
        rows: Rows R that it multiplies.
        q: Its rows.
        p: Its columns.
        formed: Whether the group's gradient was formed.
        filters: Whether it is that of a convolution.
    """

    rows: int
    q: int
    p: int
    formed: bool
    filters: bool

    def extra(self) -> float:
        """Operations of the norm, and of the perturbed pass beyond what an ordinary one takes."""
        if not self.formed:
            patches = PATCH_ELEMENT * self.rows * self.p if self.filters else 0.0
            return 6.0 * self.rows**2 * (self.p + self.q) + patches
        element = FILTER_ELEMENT / 4 if self.filters else ELEMENT
        return 2.0 * self.rows * self.p * self.q + element * self.p * self.q


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


def machine(device: torch.device) -> Machine:
    """What to reckon with on ``device``."""
    if device.type != "cpu":
        return Machine(3e13, 1.5e12, 30e-6, 120e-6, 2e-3, 5e-3)
    threads = min(torch.get_num_threads(), 16)
    return Machine(4e10 * threads, 8e9, 20e-6, 80e-6, 8e-4, 4e-3)


def around(groups: int, params: int, at: Machine) -> float:
    """Seconds that the loop takes around the passes: gradient, copy, move, copy back, accumulation."""
    return groups * (4.0 * 10 * params / at.bytes + at.group)


def seconds(
    products: Sequence[Product], groups: int, chunks: int, *, calls: int, params: int, device: torch.device
) -> tuple[float, float]:
    """Time of a call by the loop and for all groups at once, without what both have in common.

    Args:
        products: The uses of weights by one group.
        groups: Number of groups.
        chunks: Number of chunks they are run in.
        calls: Operations of the loss.
        params: Number of weights.
        device: Where.
    """
    at = machine(device)

    def pass_over(times: int) -> float:
        """One product of every use, with ``times`` as many rows."""
        return sum(
            max(2.0 * times * u.rows * u.p * u.q / at.operations, 4.0 * u.p * u.q / at.bytes)
            for u in products
        )

    loop = around(groups, params, at) + groups * (6 * pass_over(1) + 2 * calls * at.launch)
    extra = groups * sum(u.extra() for u in products) / at.operations
    together = chunks * (5 * pass_over(-(-groups // chunks)) + at.chunk + 2 * calls * at.launch_all)
    return loop, together + extra
