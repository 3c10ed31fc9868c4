"""Curves of low loss between networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowland.errors import InputError
from lowland.sharpness.averaged import Reduction, check_reduction, mean_of
from lowland.sharpness.kept import generators_kept
from lowland.sharpness.landscape import Evaluate, Prepare, Rows, rows_at
from lowland.sharpness.objective import slopes
from lowland.sharpness.states import State, at_state, mixed, require_alike


@dataclass(frozen=True)
class Bezier:
    r"""The curve :math:`\phi(t) = (1 - t)^2 a + 2 t (1 - t)\,c + t^2 b` (Garipov et al., 2018, eq. 5).

    Attributes:
        a: One end.
        control: Weights c that bend it.
        b: The other end.
    """

    a: State
    control: State
    b: State

    def at(self, t: float) -> dict[str, Tensor]:
        """The weights at t in [0, 1].

        Args:
            t: Where on the curve.

        Raises:
            InputError: If names or shapes of the three differ.
        """
        return mixed([self.a, self.control, self.b], [(1 - t) ** 2, 2 * t * (1 - t), t**2])


def trained_bezier(
    module: nn.Module,
    a: State,
    b: State,
    loss: Callable[..., Tensor],
    batches: Iterable[Sequence[Any]],
    *,
    steps: int,
    lr: float = 0.05,
    momentum: float = 0.9,
    seed: int = 0,
    reduction: Reduction = "mean",
    on_step: Callable[[int], object] = lambda _: None,
) -> Bezier:
    r"""A curve whose mean loss :math:`E_t\, L(\phi(t))`, t uniform in [0, 1], is made small by SGD.

    Only the parameters of the control point are trained; it begins in the middle between the ends. Batch-norm
    statistics on the curve belong to no network: estimate them again where it is evaluated.

    Args:
        module: A network of the kind; what it was afterwards, bit for bit.
        a: One end.
        b: The other end.
        loss: ``loss(*batch)``: the mean loss of a batch with the module's weights, or that of each example.
        batches: The loss's arguments; gone through again and again.
        steps: Number of steps.
        lr: Their size.
        momentum: Of SGD.
        seed: Of the points t.
        reduction: ``"sum"`` for a loss that adds up its examples instead: it is divided by their number.
        on_step: Called with each step's number.

    Returns:
        The curve, with its trained control point.

    Raises:
        InputError: If the ends are not of the same kind, a number is out of range, there is no batch, or the
            loss does not depend on the module's parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import trained_bezier
        >>> module = torch.nn.Linear(1, 1)
        >>> a, b = ({"weight": torch.tensor([[x]]), "bias": torch.zeros(1)} for x in (-1.0, 1.0))
        >>> def loss(x):  # 0 on the parabola bias = 1 - weight ** 2 through both ends, a Bézier curve
        ...     return (module.bias - 1.0 + module.weight.square()).square().mean() + 0.0 * x.sum()
        >>> curve = trained_bezier(module, a, b, loss, [(torch.ones(1),)], steps=40, lr=1.0, momentum=0.5)
        >>> [round(curve.control[name].item(), 2) + 0.0 for name in ("weight", "bias")]
        [0.0, 2.0]
    """
    check_reduction(reduction)
    require_alike(a, b)
    if steps < 1 or not lr > 0.0 or not 0.0 <= momentum < 1.0:
        raise InputError(
            f"steps and lr must be positive and momentum in [0, 1), got {steps}, {lr} and {momentum}."
        )
    control = mixed([a, b], [0.5, 0.5])
    params = dict(module.named_parameters())
    free = {name: control[name].clone().requires_grad_() for name in params}
    optimizer = torch.optim.SGD(free.values(), lr=lr, momentum=momentum)
    generator = torch.Generator().manual_seed(seed)
    rounds = _again(batches)
    with generators_kept(params.values()):  # a loader draws
        for step in range(steps):
            t = torch.rand((), generator=generator, dtype=torch.float64).item()
            batch = next(rounds)
            point = Bezier(a, control | {n: p.detach() for n, p in free.items()}, b).at(t)
            with at_state(module, point), torch.enable_grad():
                found = slopes(mean_of(loss(*batch), tuple(batch), reduction), list(params.values()))
            for p, g in zip(free.values(), found, strict=True):
                p.grad = None if g is None else 2.0 * t * (1.0 - t) * g
            optimizer.step()
            on_step(step)
    return Bezier(a, control | {n: p.detach() for n, p in free.items()}, b)


def along_curve(
    module: nn.Module,
    curve: Bezier,
    at: Sequence[float],
    evaluate: Evaluate,
    *,
    prepare: Prepare | None = None,
) -> Rows:
    """What ``evaluate`` finds on the curve, as :func:`interpolation` does on a line.

    Args:
        module: A network of the kind; what it was afterwards, bit for bit.
        curve: The curve.
        at: The values of t in [0, 1].
        evaluate: Losses and errors of the module, by name.
        prepare: As for :func:`interpolation`.

    Returns:
        A row ``{"t": t, ...}`` for each t.

    Raises:
        InputError: If the curve is of another kind of network, or ``evaluate`` looks at another network.

    Example:
        >>> import torch
        >>> from lowland.sharpness import Bezier, along_curve
        >>> module = torch.nn.Linear(1, 1)
        >>> a, c, b = ({"weight": torch.tensor([[x]]), "bias": torch.zeros(1)} for x in (0.0, 2.0, 0.0))
        >>> def evaluate(module):
        ...     return {"weight": module.weight.item()}
        >>> along_curve(module, Bezier(a, c, b), [0.0, 0.5, 1.0], evaluate)  # 2 t (1 - t) c
        [{'t': 0.0, 'weight': 0.0}, {'t': 0.5, 'weight': 1.0}, {'t': 1.0, 'weight': 0.0}]
    """
    points = (({"t": float(t)}, curve.at(t)) for t in at)
    return rows_at(module, points, evaluate, prepare)


def _again(batches: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise InputError("batches must hold at least one batch, got none.")
