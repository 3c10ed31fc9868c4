"""Landscapes of trained networks: lines, curves and planes, with loss and error on both splits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowland.deep.averaging import has_batch_norm, reestimate_batch_norm
from lowland.deep.data import Split
from lowland.deep.seeding import derive_seed
from lowland.deep.subject import Subject
from lowland.deep.view import SceneryConfig, View
from lowland.errors import InputError
from lowland.sharpness import (
    Bezier,
    along_curve,
    distances,
    gradient_direction,
    interpolation,
    plane,
    plane_through,
    random_direction,
    state_of,
    trained_bezier,
)
from lowland.sharpness.directions import Direction
from lowland.sharpness.states import State

Rows = list[dict[str, float]]
Point = dict[str, float]
Points = dict[str, tuple[float, ...]]
_AXES = ("t", "x", "y")
_BATCH = 256
_STATISTICS = 5000
"""Training images that batch-norm statistics are estimated on, as in the original."""


@dataclass(frozen=True)
class Scenery:
    """What was seen.

    Attributes:
        view: Which view.
        paths: Rows along a line, or several paths, by name; one entry for a plane.
        points: The networks in it: coordinates of one or two dimensions.
        distances: Norms and distances of the networks.
    """

    view: View
    paths: Mapping[str, Rows]
    points: Mapping[str, tuple[float, ...]]
    distances: list[dict[str, Any]]


def scenery(
    subjects: Mapping[str, Subject],
    config: SceneryConfig,
    *,
    known: Sequence[Mapping[str, Any]] = (),
    on_row: Callable[[dict[str, Any]], object] = lambda _: None,
    on_point: Callable[[], object] = lambda: None,
) -> Scenery:
    """Looks at the landscape around and between networks, on the first one's data.

    Batch-norm statistics between networks are estimated again on the first 5,000 training examples, however
    many of them are evaluated.

    Args:
        subjects: One, two or three networks of the same kind, by name; the same afterwards, bit for bit.
        config: What to look at.
        known: Rows of an earlier look at the same, as ``on_row`` was given them; not looked at again.
        on_row: Called with each new row, with the name of its ``path``, as soon as there is one.
        on_point: Called after each point, known or new.

    Raises:
        InputError: If the view is not of that many networks, or they are not of the same kind.
    """
    return _Looking(subjects, config, known, on_row, on_point).seen()


class _Looking:
    def __init__(
        self,
        subjects: Mapping[str, Subject],
        config: SceneryConfig,
        known: Sequence[Mapping[str, Any]],
        on_row: Callable[[dict[str, Any]], object],
        on_point: Callable[[], object],
    ) -> None:
        self.subjects, self.config, self.on_row, self.on_point = subjects, config, on_row, on_point
        self.known = {_place(row["path"], row): _numbers(row) for row in known}
        self.view = config.resolved(len(subjects))
        self.names = list(subjects)
        self.first = next(iter(subjects.values()))
        self.states = {name: state_of(subject.model) for name, subject in subjects.items()}
        self.splits = {"train": self.first.train.head(config.n_eval)}
        if len(self.first.test) > 0:
            self.splits["test"] = self.first.test.head(config.n_eval)

    def seen(self) -> Scenery:
        """What was seen."""
        paths, points = {
            "line": self._line,
            "curve": self._curve,
            "plane": self._plane,
            "random-line": self._random_line,
            "sam": self._sam,
        }[self.view]()
        found = distances(self.first.model, self.states)
        return Scenery(self.view, paths, points, found)

    def _line(self) -> tuple[dict[str, Rows], Points]:
        a, b = self.states.values()
        at = self._coordinates(-0.5, 1.5, through=(0.0, 1.0))
        rows = self._rows("line", [{"t": t} for t in at], functools.partial(self._between, a, b))
        return {"line": rows}, dict(zip(self.names, ((0.0,), (1.0,)), strict=True))

    def _curve(self) -> tuple[dict[str, Rows], Points]:
        a, b = self.states.values()
        model, config = self.first.model, self.config
        curve = trained_bezier(
            model,
            a,
            b,
            lambda *batch: self._loss(*batch).mean(),
            list(self._batches()),
            steps=config.curve_steps,
            lr=config.curve_lr,
            seed=config.seed,
        )
        at = list(np.linspace(0.0, 1.0, config.points))
        points = [{"t": float(t)} for t in at]
        line = self._rows("straight", points, functools.partial(self._between, a, b))
        bent = self._rows("curve", points, functools.partial(self._bent, curve))
        return {"straight": line, "curve": bent}, dict(zip(self.names, ((0.0,), (1.0,)), strict=True))

    def _plane(self) -> tuple[dict[str, Rows], Points]:
        model = self.first.model
        if len(self.states) == 1:
            directions = [
                random_direction(model, seed=derive_seed(self.config.seed, "plane", i)) for i in (0, 1)
            ]
            at = self._coordinates(-1.0, 1.0, through=(0.0,))
            rows = self._rows("plane", _grid(at, at), functools.partial(self._moved, directions))
            return {"plane": rows}, {self.names[0]: (0.0, 0.0)}
        a, b, c = self.states.values()
        names = [name for name, _ in model.named_parameters()]
        through, places = plane_through(names, a, b, c)
        axes = [self._around([place[i] for place in places]) for i in (0, 1)]
        prepared = functools.partial(self._moved, through, origin=a, prepare=self._prepare)
        rows = self._rows("plane", _grid(*axes), prepared)
        return {"plane": rows}, dict(zip(self.names, places, strict=True))

    def _random_line(self) -> tuple[dict[str, Rows], Points]:
        direction = random_direction(self.first.model, seed=derive_seed(self.config.seed, "line"))
        return self._through(direction, -1.0, 1.0)

    def _sam(self) -> tuple[dict[str, Rows], Points]:
        split = self.first.train.head(self.config.n_direction)
        params = dict(self.first.model.named_parameters())

        direction = gradient_direction(self._loss, params, (*split.arguments, split.targets))
        return self._through(direction, -0.5, 0.5)

    def _loss(self, *batch: Tensor) -> Tensor:
        *inputs, targets = batch
        return self.first.criterion.loss(self.first.outputs(*inputs), targets)

    def _through(
        self, direction: Mapping[str, Tensor], low: float, high: float
    ) -> tuple[dict[str, Rows], Points]:
        at = self._coordinates(low, high, through=(0.0,))
        rows = self._rows("line", [{"x": x} for x in at], functools.partial(self._moved, [direction]))
        return {"line": rows}, {self.names[0]: (0.0,)}

    def _rows(self, path: str, points: Sequence[Point], look: Callable[[Point], Rows]) -> Rows:
        """A row for each point of a path."""
        rows: Rows = []
        for point in points:
            row = self.known.get(_place(path, point))
            if row is None:
                (row,) = look(point)
                self.on_row({"path": path} | row)
            rows.append(row)
            self.on_point()
        return rows

    def _between(self, a: State, b: State, point: Point) -> Rows:
        return interpolation(self.first.model, a, b, [point["t"]], self._evaluated, prepare=self._prepare)

    def _bent(self, curve: Bezier, point: Point) -> Rows:
        return along_curve(self.first.model, curve, [point["t"]], self._evaluated, prepare=self._prepare)

    def _moved(
        self,
        directions: Sequence[Direction],
        point: Point,
        *,
        origin: State | None = None,
        prepare: Callable[[nn.Module], object] | None = None,
    ) -> Rows:
        at = [[x] for x in point.values()]
        return plane(self.first.model, directions, at, self._evaluated, origin=origin, prepare=prepare)

    def _coordinates(self, low: float, high: float, *, through: Sequence[float]) -> list[float]:
        """Evenly spaced, and the networks' own."""
        low = low if self.config.low is None else self.config.low
        high = high if self.config.high is None else self.config.high
        if not low < high:
            raise InputError(f"low must be below high, got {low} and {high}.")
        spaced = np.linspace(low, high, self.config.points).tolist()
        return sorted({round(x, 12) for x in spaced} | {x for x in through if low <= x <= high})

    def _around(self, places: Sequence[float]) -> list[float]:
        low, high = min(places), max(places)
        beyond = self.config.margin * (high - low)
        return [float(x) for x in np.linspace(low - beyond, high + beyond, self.config.points)]

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        split = self.first.train
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "curve"))
        order = torch.randperm(len(split), generator=generator).to(split.targets.device)
        for rows in torch.split(order, 128):
            yield (*(argument[rows] for argument in split.arguments), split.targets[rows])

    def _prepare(self, model: nn.Module) -> None:
        if has_batch_norm(model):
            split = self.first.train.head(_STATISTICS)
            # Parts of one size, since each counts the same.
            count = math.ceil(len(split) / _BATCH)
            inputs, *masks = (torch.tensor_split(argument, count) for argument in split.arguments)
            parts = zip(map(self.first.inputs, inputs), *masks, strict=True)
            reestimate_batch_norm(model, parts)

    def _evaluated(self, _: nn.Module) -> dict[str, float]:
        row: dict[str, float] = {}
        for name, split in self.splits.items():
            row |= {f"{name}_{what}": value for what, value in _loss_and_error(self.first, split).items()}
        return row


def _grid(xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
    return [{"x": float(x), "y": float(y)} for y in ys for x in xs]


def _place(path: str, point: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a point from the others."""
    return (path, *(point.get(name) for name in _AXES))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A row that was kept, as it was: a number that JSON cannot hold is ``null`` there."""
    return {name: math.nan if v is None else v for name, v in row.items() if name != "path"}


@torch.no_grad()
def _loss_and_error(subject: Subject, split: Split) -> dict[str, float]:
    """The mean loss, and the share of errors where there are any."""
    sums = {"loss": 0.0} | ({"error": 0.0} if subject.criterion.has_errors else {})
    columns = [torch.split(tensor, _BATCH) for tensor in (*split.arguments, split.targets)]
    for *inputs, targets in zip(*columns, strict=True):
        outputs = subject.outputs(*inputs)
        found = {"loss": subject.criterion.losses(outputs, targets)} | subject.criterion.notes(
            outputs, targets
        )
        for name, values in found.items():
            sums[name] += values.double().sum().item()
    return {name: value / len(split) for name, value in sums.items()}
