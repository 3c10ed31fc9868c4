"""Directions along which a loss is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowland.errors import InputError
from lowland.sam.norm import l2_norm
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.objective import Batch, Loss, objective
from lowland.sharpness.states import State, require_alike

Direction = Mapping[str, Tensor]
"""One tensor for each parameter that moves, by name."""


def random_direction(module: nn.Module, *, seed: int) -> dict[str, Tensor]:
    r"""A Gaussian direction, filter-normalized (Li et al., 2018, section 4).

    Each filter (row of the first dimension) of the direction gets the length of the network's own,
    :math:`d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|} \|w_{ij}\|`, so that pictures of networks whose
    weights have different sizes can be compared. Parameters of one dimension, biases and normalization
    weights, do not move, as there.

    Args:
        module: The network.
        seed: Of the direction.

    Example:
        >>> import torch
        >>> from lowland.sharpness import random_direction
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> found = random_direction(module, seed=0)
        >>> torch.allclose(found["0.weight"].norm(dim=1), module[0].weight.norm(dim=1))
        True
        >>> found["0.bias"]
        tensor([0., 0.])
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, p in module.named_parameters():
        draw = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device, p.dtype)
        found[name] = _filter_normalized(draw, p.detach()) if p.dim() > 1 else torch.zeros_like(draw)
    return found


def _filter_normalized(d: Tensor, w: Tensor) -> Tensor:
    rows, wanted = (torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64) for t in (d, w))
    factors = wanted / rows.clamp(min=torch.finfo(d.dtype).tiny)
    found: Tensor = d * factors.to(d.dtype).view(-1, *[1] * (d.dim() - 1))
    return found


def gradient_direction(
    loss: Loss,
    params: Mapping[str, Tensor],
    batch: Batch,
    *,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The gradient over its l2 norm: where SAM's perturbation leads.

    Args:
        loss: The mean loss of the examples it is given, as for :func:`lowland.sam_gradient`, and so are
            ``batch`` and ``module``.
        params: The parameters, by name.
        batch: The examples.
        reduction: ``"sum"`` for a loss that adds up its examples instead: it is divided by their number.
        module: The module that ``loss`` runs.

    Raises:
        InputError: If the loss does not depend on the parameters, or the gradient is zero or not finite.

    Example:
        >>> import torch
        >>> from lowland.sharpness import gradient_direction
        >>> w = {name: torch.tensor([x], requires_grad=True) for name, x in (("a", 3.0), ("b", 4.0))}
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w.values())
        >>> {name: round(t.item(), 4) for name, t in gradient_direction(loss, w, (torch.ones(2),)).items()}
        {'a': 0.6, 'b': 0.8}
    """
    with objective(loss, params, batch, module, reduction) as target:
        total = [torch.zeros_like(p, dtype=torch.float64) for p in target.params]
        for part, share in zip(target.parts, target.shares, strict=True):
            for t, g in zip(total, target.slopes(part), strict=True):
                if g is not None:
                    t.add_(g, alpha=share)
    length = l2_norm(total).item()
    if not 0.0 < length < math.inf:
        raise InputError(f"a direction needs a gradient that is finite and not zero, got norm {length}.")
    return {name: (t / length).to(p.dtype) for (name, p), t in zip(params.items(), total, strict=True)}


def plane_through(
    names: Sequence[str], a: State, b: State, c: State
) -> tuple[list[dict[str, Tensor]], list[tuple[float, float]]]:
    """Two orthonormal directions from ``a``, in whose plane ``b`` and ``c`` lie, and where all three are.

    After Garipov et al. (2018, appendix A.1).

    Args:
        names: The parameters, in whose space angles are measured.
        a: The origin.
        b: Another network, along the first direction.
        c: A third one.

    Returns:
        The directions, and the coordinates of the three networks.

    Raises:
        InputError: If the three lie on a line, or are not of the same kind.

    Example:
        >>> import torch
        >>> from lowland.sharpness import plane_through
        >>> places = ((0.0, 0.0), (2.0, 0.0), (1.0, 3.0))
        >>> a, b, c = ({"w": torch.tensor([x]), "v": torch.tensor([y])} for x, y in places)
        >>> directions, found = plane_through(["w", "v"], a, b, c)
        >>> found
        [(0.0, 0.0), (2.0, 0.0), (1.0, 3.0)]
    """
    require_alike(a, b)
    require_alike(a, c)
    u = {n: b[n].double() - a[n].double() for n in names}
    v = {n: c[n].double() - a[n].double() for n in names}
    base = math.sqrt(_inner(u, u))
    if base == 0.0:
        raise InputError("a plane needs three networks that are not on a line, got two that are the same.")
    u = {n: t / base for n, t in u.items()}
    along = _inner(u, v)
    v = {n: v[n] - along * u[n] for n in names}
    height = math.sqrt(_inner(v, v))
    if height <= 1e-7 * max(base, abs(along)):
        raise InputError("a plane needs three networks that are not on a line, got three on one.")
    v = {n: t / height for n, t in v.items()}
    return [u, v], [(0.0, 0.0), (base, 0.0), (along, height)]


def _inner(a: Direction, b: Direction) -> float:
    return math.fsum((a[n] * b[n]).sum().item() for n in a)
