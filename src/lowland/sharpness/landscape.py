"""The loss along lines and over planes of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import nn

from lowland.errors import InputError
from lowland.sharpness.directions import Direction
from lowland.sharpness.read import require_read
from lowland.sharpness.states import State, at_state, mixed, state_of

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Prepare = Callable[[nn.Module], object]
Rows = list[dict[str, float]]


def interpolation(
    module: nn.Module,
    a: State,
    b: State,
    at: Sequence[float],
    evaluate: Evaluate,
    *,
    prepare: Prepare | None = None,
) -> Rows:
    r"""What ``evaluate`` finds at :math:`(1 - t)\,a + t\,b`, beyond the two for t outside [0, 1].

    Args:
        module: A network of the kind; what it was afterwards, bit for bit.
        a: Weights and buffers at t = 0.
        b: Those at t = 1; buffers of whole numbers are those of ``a``.
        at: The values of t.
        evaluate: Losses and errors of the module, by name; called without gradients. In the first point it is
            watched whether it looks at the module.
        prepare: Done to the module before each evaluation, also at the ends: batch-norm statistics that are
            estimated again, since those in between belong to no network.

    Returns:
        A row ``{"t": t, ...}`` for each t.

    Raises:
        InputError: If the two are not of the same kind, or ``evaluate`` looks at another network.

    Example:
        >>> import torch
        >>> from lowland.sharpness import interpolation
        >>> module = torch.nn.Linear(1, 1)
        >>> a, b = ({"weight": torch.tensor([[x]]), "bias": torch.zeros(1)} for x in (-1.0, 1.0))
        >>> def evaluate(module):
        ...     return {"loss": module.weight.square().sum().item()}
        >>> interpolation(module, a, b, [0.0, 0.5, 1.0], evaluate)
        [{'t': 0.0, 'loss': 1.0}, {'t': 0.5, 'loss': 0.0}, {'t': 1.0, 'loss': 1.0}]
    """
    points = (({"t": float(t)}, mixed([a, b], [1.0 - t, t])) for t in at)
    return rows_at(module, points, evaluate, prepare)


def plane(
    module: nn.Module,
    directions: Sequence[Direction],
    coordinates: Sequence[Sequence[float]],
    evaluate: Evaluate,
    *,
    origin: State | None = None,
    prepare: Prepare | None = None,
) -> Rows:
    r"""What ``evaluate`` finds at :math:`w + x\,d_1 + y\,d_2`, on a grid; along a line for one direction.

    Args:
        module: The network; what it was afterwards, bit for bit.
        directions: One or two, by parameter.
        coordinates: For each direction, the coordinates.
        evaluate: Losses and errors of the module, by name.
        origin: The weights w; by default the module's own.
        prepare: As for :func:`interpolation`.

    Returns:
        A row ``{"x": x, "y": y, ...}`` for each point, x fastest; without y for one direction.

    Raises:
        InputError: If there are not one or two directions, each with coordinates, or ``evaluate`` looks at
            another network.

    Example:
        >>> import torch
        >>> from lowland.sharpness import plane
        >>> module = torch.nn.Linear(1, 1)
        >>> origin = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
        >>> directions = [{"weight": torch.ones(1, 1)}, {"bias": torch.ones(1)}]
        >>> def evaluate(module):
        ...     return {"sum": module(torch.ones(1)).item()}
        >>> rows = plane(module, directions, [[0.0, 1.0], [0.0, 5.0]], evaluate, origin=origin)
        >>> [(row["x"], row["y"], row["sum"]) for row in rows]
        [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 5.0, 5.0), (1.0, 5.0, 6.0)]
    """
    if len(directions) not in (1, 2) or len(coordinates) != len(directions):
        raise InputError(
            "one or two directions with coordinates for each are needed, "
            f"got {len(directions)} and {len(coordinates)}."
        )
    origin = state_of(module) if origin is None else origin
    xs, ys = coordinates[0], coordinates[1] if len(coordinates) == 2 else (None,)
    places = ({"x": float(x)} if y is None else {"x": float(x), "y": float(y)} for y in ys for x in xs)
    points = ((place, _moved(origin, directions, list(place.values()))) for place in places)
    return rows_at(module, points, evaluate, prepare)


def barrier(rows: Sequence[Mapping[str, float]], name: str, *, along: str = "t") -> float:
    """The largest rise of a value above the straight line between its ends.

    It is the error barrier of Frankle et al. (2020, section 2), of any value.

    Args:
        rows: A path from t = 0 to t = 1.
        name: The value.
        along: The name of t.

    Raises:
        InputError: If the path does not have both ends.

    Example:
        >>> from lowland.sharpness import barrier
        >>> barrier([{"t": 0.0, "loss": 1.0}, {"t": 0.5, "loss": 5.0}, {"t": 1.0, "loss": 3.0}], "loss")
        3.0
    """
    values = {row[along]: row[name] for row in rows if 0.0 <= row[along] <= 1.0}
    if 0.0 not in values or 1.0 not in values:
        raise InputError(f"the path must go from 0 to 1, got {sorted(values)}.")
    first, last = values[0.0], values[1.0]
    return max(value - (1.0 - t) * first - t * last for t, value in values.items())


def _moved(origin: State, directions: Sequence[Direction], by: Sequence[float]) -> State:
    found = {name: t.clone() for name, t in origin.items()}
    for direction, x in zip(directions, by, strict=True):
        for name, d in direction.items():
            found[name] = (found[name].double() + x * d.double()).to(origin[name].dtype)
    return found


def rows_at(
    module: nn.Module,
    points: Iterable[tuple[dict[str, float], State]],
    evaluate: Evaluate,
    prepare: Prepare | None,
) -> Rows:
    """What ``evaluate`` finds of the module, once it is prepared, at each of the states.

    Raises:
        InputError: If ``evaluate`` does not look at the module in the first point.
    """
    rows: Rows = []
    for place, state in points:
        with at_state(module, state):
            if prepare is not None:
                prepare(module)
            with torch.no_grad(), nullcontext() if rows else require_read(module):
                rows.append(place | {name: float(value) for name, value in evaluate(module).items()})
    return rows
