"""Rise of the loss at random weights nearby."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from lowland.errors import InputError, one_of
from lowland.sam import perturbed
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.measurement import Measurement, dtype_name
from lowland.sharpness.objective import Batch, Loss, Objective, Params, objective
from lowland.sharpness.scales import Scaling, check_scaling, in_units, scales

Distribution = Literal["gaussian", "uniform"]


def average_case(
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    rho: float,
    distribution: Distribution = "gaussian",
    scaling: Scaling = "plain",
    stderr: float | None = None,
    samples: int = 32,
    max_samples: int = 1024,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Measurement:
    r""":math:`E\,L(w + \delta) - L(w)` for random :math:`\delta`.

    :math:`\delta = \rho\, c \odot z` with independent entries of z of variance 1 and :math:`c = 1`, or
    :math:`c = |w|` for ``scaling="element"``, which does not change when weights are rescaled layer by
    layer without changing the function (Andriushchenko et al., 2023, section 2), or the norm of the weight's
    filter for ``scaling="filter"``, or its size and 1 for ``"shifted"``. It is the same for every m, since a
    mean over groups commutes with the mean over :math:`\delta`. On a quadratic it is
    :math:`\frac12\rho^2 \operatorname{tr}(c^2 H)`. Each z is used with both signs.

    Args:
        loss: The mean loss of the examples it is given, as for :func:`lowland.sam_gradient`, and so are
            ``params``, ``batch`` and ``module``. One gradient of the first part shows that it is the
            parameters' loss.
        params: The parameters; unchanged, and so are their ``.grad``, buffers and random generators.
        batch: The examples.
        rho: Standard deviation of each weight's perturbation, in units of c.
        distribution: Of z: normal, or uniform with variance 1.
        scaling: What c is.
        stderr: Standard error to be reached; ``None`` for just ``samples``.
        samples: Least number of z.
        max_samples: Largest number, where ``stderr`` is out of reach.
        seed: Of z.
        reduction: ``"sum"`` for a loss that adds up its examples instead: it is divided by their number.
        module: The module that ``loss`` runs.

    Returns:
        Value and standard error over the z; ``settings["samples"]`` says how many there were.

    Raises:
        InputError: If a number is out of its range, or the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import average_case
        >>> w = [torch.zeros(3, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(x):
        ...     return 0.5 * x * sum(t.square().sum() for t in w)  # its Hessian has the trace 4
        >>> found = average_case(loss, w, (torch.ones(2),), rho=0.1, samples=256)
        >>> abs(found.value - 0.5 * 0.1**2 * 4) < 4 * found.stderr
        True
    """
    one_of("distribution", distribution, ("gaussian", "uniform"))
    check_scaling(scaling)
    if not 0.0 < rho < math.inf:
        raise InputError(f"rho must be positive and finite, got {rho}.")
    if stderr is not None and not stderr > 0.0:
        raise InputError(f"stderr must be positive, got {stderr}.")
    if not 2 <= samples <= max_samples:
        raise InputError(f"samples must be from 2 to max_samples, got {samples} and {max_samples}.")
    with objective(loss, params, batch, module, reduction) as target:
        target.slopes(target.parts[0])
        start, rises = target.mean_loss(), []
        for e in islice(_perturbations(target, rho, distribution, scaling, seed), max_samples):
            rises.append(_rise(target, e, start))
            if len(rises) >= samples and (stderr is None or _error(rises) <= stderr):
                break
        settings = {
            "rho": rho,
            "distribution": distribution,
            "scaling": scaling,
            "samples": len(rises),
            "seed": seed,
        }
        value = math.fsum(rises) / len(rises)
        dtype = dtype_name(target.params)
        return Measurement("average case", value, _error(rises), target.examples, dtype, settings)


@torch.no_grad()
def _rise(target: Objective, e: list[Tensor], start: float) -> float:
    """The mean rise of the loss over both signs of a perturbation."""
    both = []
    for sign in (1.0, -1.0):
        with perturbed(target.params, [sign * d for d in e]):
            both.append(target.mean_loss() - start)
    return 0.5 * sum(both)


def _perturbations(
    target: Objective, rho: float, distribution: Distribution, scaling: Scaling, seed: int
) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    units = scales(target.params, scaling)
    while True:
        e = []
        for p in target.params:
            if distribution == "gaussian":
                z = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            else:
                z = (2.0 * torch.rand(p.shape, generator=generator, dtype=torch.float64) - 1.0) * math.sqrt(3)
            e.append((rho * z).to(device=p.device, dtype=torch.promote_types(p.dtype, torch.float32)))
        yield in_units(e, units)


def _error(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
