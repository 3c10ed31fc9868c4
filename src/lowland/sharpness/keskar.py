"""The sharpness of Keskar et al. (2017)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from lowland.sam.arguments import Engine
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.measurement import Measurement
from lowland.sharpness.objective import Batch, Loss, Params, held, objective
from lowland.sharpness.search import AutoPGD, Search
from lowland.sharpness.worst_case import worst_case


def keskar_sharpness(
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    epsilon: float = 1e-3,
    search: Search = AutoPGD(),  # noqa: B008 - immutable
    restarts: int = 1,
    seed: int = 0,
    reduction: Reduction = "mean",
    engine: Engine = "auto",
    module: nn.Module | None = None,
) -> Measurement:
    r"""The sharpness of Keskar et al. (2017, metric 2.1), in per cent.

    .. math::
        100 \cdot \frac{\max_\delta L(w + \delta) - L(w)}{1 + L(w)}, \qquad
        |\delta_i| \le \epsilon\,(|w_i| + 1)

    over all weights, where theirs may also be over a random subspace. It is the worst case of one group in
    units of ``"shifted"`` weights, and as any of these a lower bound. It changes when layers are rescaled,
    and when the loss is (Dinh et al., 2017).

    Args:
        loss: The mean loss of the examples it is given, as for :func:`worst_case`, and so are ``params``,
            ``batch``, ``search``, ``restarts``, ``seed``, ``reduction``, ``engine`` and ``module``.
        params: The parameters.
        batch: The examples.
        epsilon: Half the length of the box's edges, in units of each weight's size and 1.
        search: How to climb.
        restarts: Number of climbs.
        seed: Of their starts.
        reduction: Whether the loss is a mean or a sum.
        engine: How they are run.
        module: The module that the loss runs.

    Returns:
        The per cent; ``also`` has the ``rise`` and the ``loss`` that they are made of.

    Raises:
        InputError: As for :func:`worst_case`.

    Example:
        >>> import torch
        >>> from lowland.sharpness import keskar_sharpness
        >>> w = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (0.0, 1.0)]
        >>> def loss(x):
        ...     return x.mean() * (w[0] + w[1]).sum()  # at most 1 + 0.1 * (1 + 2)
        >>> found = keskar_sharpness(loss, w, (torch.ones(2, dtype=torch.float64),), epsilon=0.1)
        >>> round(found.value, 6)  # of 1 + 1
        15.0
    """
    batch = held(batch)
    found = worst_case(
        loss,
        params,
        batch,
        rho=epsilon,
        norm="linf",
        scaling="shifted",
        search=search,
        restarts=restarts,
        seed=seed,
        reduction=reduction,
        engine=engine,
        module=module,
    )
    with objective(loss, params, batch, module, reduction) as target:
        level = target.mean_loss()
    also = {**found.also, "rise": found.value, "loss": level}
    value = 100.0 * found.value / (1.0 + level)
    return replace(found, measure="Keskar's sharpness", value=value, groups=None, extras={}, also=also)
