"""The least time that SAM could take on this machine: operations over peak, weights over bandwidth.

The operations are those of the products of a forward and a backward pass (`torch.utils.flop_counter`), over
the peak of a large product; the bytes are those of the weights and their gradients, each read or written as
often as the method must, over the bandwidth of a large copy. Of the two the larger: it is a floor, without
activations, norms, attention's softmax, or what the many small operations cost. A step can be below it only
where the weights stay in a cache or reading is faster than copying.

    ordinary SAM: 2 forward, 2 backward;                      weights moved  9 times
    m-SAM:        2 forward, 1 backward, 1 to the input only; weights moved  5 times
    plain step:   1 forward, 1 backward;                      weights moved  3 times

Ordinary SAM reads the weights in each of its four passes, writes two gradients, and to move the weights reads
both and writes the moved (its norm may be taken while the gradient is written). m-SAM reads them in four
passes too and writes one gradient, and its first backward pass forms no gradient of a weight.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from interleaved import synchronize
from networks import Problem

_WEIGHTS = ("mm", "addmm", "convolution")
"""Forward operations whose gradient in the weight costs what they do."""


@dataclass(frozen=True)
class Machine:
    """Measured speeds.

    Attributes:
        operations: Of a large product, per second; a multiply-add is two.
        bytes: Read and written by a large copy, per second.
    """

    operations: float
    bytes: float


@dataclass(frozen=True)
class Floor:
    """Least seconds of a step of each kind."""

    plain: float
    ordinary: float
    m_sam: float


def measured_machine(device: torch.device) -> Machine:
    """The speeds of ``device``, in float32 as PyTorch is set."""
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    product = torch.empty_like(a)
    source = torch.zeros(64 * 2**20, device=device)  # larger than the caches
    target = torch.zeros_like(source)
    return Machine(
        2 * n**3 / _seconds(lambda: torch.mm(a, a, out=product)),
        2 * source.nbytes / _seconds(lambda: target.copy_(source)),
    )


def floor(problem: Problem, machine: Machine) -> Floor:
    """Floors of the steps of a problem."""
    with FlopCounterMode(display=False) as counter:
        loss = problem.loss(problem.x, problem.y)
    forward = counter.get_total_flops()
    by_operation = counter.get_flop_counts().get("Global", {})
    weights = sum(flops for op, flops in by_operation.items() if op.__name__ in _WEIGHTS)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss, problem.params)
    backward = counter.get_total_flops()
    size = sum(p.nbytes for p in problem.params)

    def seconds(operations: float, times: int) -> float:
        return max(operations / machine.operations, times * size / machine.bytes)

    return Floor(
        seconds(forward + backward, 3),
        seconds(2 * (forward + backward), 9),
        seconds(2 * (forward + backward) - weights, 5),
    )


def _seconds(step: Callable[[], object]) -> float:
    times = []
    for _ in range(9):
        synchronize()
        start = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
