"""Climbs of many groups from many starts to many radii, as many at once as fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from lowland.sam.arguments import Engine
from lowland.sam.ascent import L2
from lowland.sam.climbing import Climbing
from lowland.sam.grouped import Grouped
from lowland.sam.looks.one_group import OneGroup
from lowland.sam.looks.world import World
from lowland.sam.objective import Objective
from lowland.sam.precision import working
from lowland.sam.radii import Radii
from lowland.sam.said import warn_caller
from lowland.sam.unbatchable import IN_HALF, IN_SEVERAL_PARTS, Unbatchable, unless_torch_lacks_it
from lowland.sam.vectors import Shown
from lowland.sam.vectors.norms import squared_norms
from lowland.sam.vectors.per_group import PerGroup
from lowland.sharpness.ball import Ball, L2Ball, LInfBall, Norm
from lowland.sharpness.nearby import Nearby, Visit
from lowland.sharpness.scales import Scaling, scales
from lowland.sharpness.search import Best, Search
from lowland.sharpness.unformed import Unformed
from lowland.sharpness.vectors import Formed, Space, Vector


@dataclass(frozen=True)
class Trial:
    """One climb.

    Attributes:
        group: Index of the group.
        rho: Radius.
        start: Number of its random start; 0 for the weights themselves.
    """

    group: int
    rho: float
    start: int


@dataclass(frozen=True)
class Found:
    """What a trial found.

    Attributes:
        best: The highest point, of the group that climbed.
        measured: The weights and the highest point, of the group that is measured.
        point: The perturbation that leads there, if it was asked for.
    """

    best: Visit
    measured: tuple[Visit, Visit]
    point: list[Tensor] | None


@dataclass(frozen=True)
class Terrain:
    """A loss and where it is climbed.

    Attributes:
        passes: The loss that is measured.
        climbed: The loss that is climbed, which may be another one.
        moving: The number of its parameters that move, the first ones.
        groups: The groups.
        norm: Of the ball.
        scaling: Units of the weights.
        search: How to climb.
        seed: Of the random starts.
        transfers: Whether the next group's loss is asked for as well.
        points: Whether the perturbations are.
        engine: How groups are run.
        max_memory: Bytes that climbs at once may take.
    """

    passes: Objective
    climbed: Objective
    moving: int
    groups: Grouped
    norm: Norm
    scaling: Scaling
    search: Search
    seed: int
    transfers: bool
    points: bool
    engine: Engine
    max_memory: int

    @property
    def params(self) -> list[Tensor]:
        """The parameters that move."""
        return self.passes.params[: self.moving]

    def climbed_by(self, trials: Sequence[Trial], on_progress: Callable[[float], object]) -> list[Found]:
        """What each trial found."""
        found: dict[Trial, Found] = {}
        units = scales(self.params, self.scaling)
        with World(self.passes) as world:
            for chunk in self._chunks(trials):
                found |= zip(chunk.trials, _Climb(self, chunk, units, world).found(), strict=True)
                on_progress(len(found) / len(trials))
        return [found[trial] for trial in trials]

    def _chunks(self, trials: Sequence[Trial]) -> Iterator[_Chunk]:
        ordered = sorted(trials, key=lambda t: (t.start > 0, t.start))
        warned = False
        for (_, alike), run in groupby(ordered, key=lambda t: (t.start > 0, self.groups.alike(t.group))):
            run_ = list(run)
            try:
                yield from self._planned(run_, batchable=alike is not None)
            except Unbatchable as error:
                if self.engine == "batched":
                    raise
                if len(run_) > 1 and not warned:
                    warn_caller(error.done_instead)
                    warned = True
                yield from (_Chunk([trial], None) for trial in run_)

    def _planned(self, trials: list[Trial], *, batchable: bool) -> list[_Chunk]:
        """Chunks of trials whose groups have the same shapes."""
        alone = [_Chunk([trial], None) for trial in trials]
        if self.engine == "loop" or (self.engine == "auto" and len(trials) == 1):
            return alone
        if not batchable:
            raise Unbatchable(IN_SEVERAL_PARTS)
        if self.passes.in_half:
            raise Unbatchable(IN_HALF)
        with unless_torch_lacks_it():
            from lowland.sam.batched.memory import fitting
            from lowland.sam.batched.probe import probe
        one = self.groups.stacked([trials[0].group])
        if self.climbed is not self.passes:
            probe(self.passes, one, planned_groups=len(trials), forms=False)
        seen = probe(self.climbed, one, planned_groups=len(trials), forms=False)
        gradients = self.search.steps * seen.recorded
        formed = not self._unformed(gradients, seen.found.gradient, trials[0])
        points = (self.transfers + 2 * self.points) * _weight_bytes(self.params)
        vectors = self.search.vectors * _weight_bytes(self.params) if formed else 2 * gradients
        size = fitting(len(trials), seen.saved + vectors + points, self.max_memory)
        if self.engine == "auto" and seen.loop_is_faster(
            len(trials), math.ceil(len(trials) / size), self.passes.params
        ):
            return alone
        pieces = [trials[i : i + size] for i in range(0, len(trials), size)]
        return [_Chunk(piece, formed) for piece in pieces]

    def _unformed(self, held: int, gradient: list[PerGroup], trial: Trial) -> bool:
        """Whether all gradients of a climb take less memory than one vector over all weights."""
        low = self.norm == "l2" and self.scaling in {"plain", "filter"} and trial.start == 0
        return low and held <= _weight_bytes(self.params) and Unformed.holds(gradient)


@dataclass(frozen=True)
class _Chunk:
    """Trials that run together; ``formed`` says how their vectors are kept, ``None`` a loop of one."""

    trials: list[Trial]
    formed: bool | None


@dataclass
class _Climb:
    """The climbs of one chunk: the loss in the units of its ball."""

    terrain: Terrain
    chunk: _Chunk
    units: list[Tensor | None]
    world: World

    def __post_init__(self) -> None:
        trials = self.chunk.trials
        params = self.terrain.params
        rho = torch.tensor([t.rho for t in trials], dtype=torch.float64)
        space: Space = Formed(params, len(trials))
        if self.chunk.formed is False:
            space = Unformed(params, len(trials), self.terrain.search.steps)
        self.ball: Ball = LInfBall(space, rho) if self.terrain.norm == "linf" else L2Ball(space, rho)

    @torch.no_grad()
    def found(self) -> list[Found]:
        """What each of the trials found."""
        here = self._nearby(self.terrain.passes, 0)
        self._climbed = self._nearby(self.terrain.climbed, 0)
        self._measured = here if self.terrain.climbed is not self.terrain.passes else None
        # where another loss is climbed, nothing else shows that the measured one is the parameters'
        base = here.value(None) if self._measured is None else here.slope(None)
        keeps = self.terrain.transfers or self.terrain.points
        best = self.terrain.search(self, self._start(), Best(base.losses, base.extras, keeps=keeps))
        bests = _each(Visit(best.losses, best.extras, []))
        measured = zip(_each(base), bests, strict=True)
        if self.terrain.transfers:
            there = self._nearby(self.terrain.passes, 1)
            pairs = (_each(there.value(None)), _each(there.value(self._moves(best.point))))
            measured = zip(*pairs, strict=True)
        return [Found(*row) for row in zip(bests, measured, self._points(best.point), strict=True)]

    def _points(self, z: Vector) -> Sequence[list[Tensor] | None]:
        """Each trial's perturbation of the parameters that move, if points are asked for."""
        trials = len(self.chunk.trials)
        if not self.terrain.points:
            return [None] * trials
        e = self._moves(z)
        if e is None:
            return [[torch.zeros_like(working(p.detach())) for p in self.terrain.params]] * trials
        formed = [t.whole(trials) for t in e[: self.terrain.moving]]
        return [[t[i].clone() for t in formed] for i in range(trials)]

    def slope(self, z: Vector) -> tuple[Visit, Vector]:
        """What is at z, with the share of those that move in the gradient, and the gradient in units."""
        e = self._moves(z)
        seen = self._climbed.slope(e)
        moving, staying = seen.gradient[: self.terrain.moving], seen.gradient[self.terrain.moving :]
        g = [t if c is None or t.absent else t.times(c) for t, c in zip(moving, self.units, strict=True)]
        share = self._share(g, staying) if staying else 1.0
        vector = self.ball.space.gradient(g)
        return replace(seen if self._measured is None else self._measured.value(e), share=share), vector

    def _share(self, moving: list[PerGroup], staying: list[PerGroup]) -> Tensor:
        trials = len(self.chunk.trials)
        part, rest = (squared_norms(g, trials).cpu() for g in (moving, staying))
        return torch.where(part > 0.0, (part / (part + rest)).sqrt(), part)

    def value(self, z: Vector) -> Visit:
        """What is at z."""
        return (self._measured or self._climbed).value(self._moves(z))

    def _moves(self, z: Vector) -> list[PerGroup] | None:
        if z is None:
            return None
        pairs = zip(self.ball.space.moves(z), self.units, strict=True)
        staying = [PerGroup(w) for w in self.terrain.passes.params[self.terrain.moving :]]
        return [t if c is None or t.absent else t.times(c) for t, c in pairs] + staying

    def _nearby(self, passes: Objective, shift: int) -> Nearby:
        groups = self.terrain.groups
        indices = [(t.group + shift) % len(groups) for t in self.chunk.trials]
        radii = Radii.of(1.0, len(passes.params))
        how = Climbing(L2(), radii, Shown.all_that_move(radii, passes.params, None))
        if self.chunk.formed is None:
            return Nearby(OneGroup(passes, how, groups.group(indices[0]), 1.0, self.world))
        from lowland.sam.batched.look import ManyGroups

        stacked = groups.stacked(indices)
        masses = torch.ones(len(indices), dtype=torch.float64, device="cpu")
        return Nearby(ManyGroups(passes, how, stacked, masses, self.world, formed=self.chunk.formed))

    def _start(self) -> Vector:
        """Zero, or each trial's random point of the ball."""
        trials = self.chunk.trials
        if trials[0].start == 0:
            return None
        points = {t.start: self._point(t.start) for t in trials}
        rows = [points[t.start] for t in trials]
        stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
        return self.ball.space.combined([(self.ball.rho, stacked)])

    def _point(self, number: int) -> list[Tensor]:
        """A random point of the ball of radius 1, the same for all groups."""
        generator = torch.Generator().manual_seed(self.terrain.seed + 7919 * number)
        params, wide = self.terrain.params, torch.float64
        if self.terrain.norm == "linf":
            draws = [2.0 * torch.rand(p.shape, generator=generator, dtype=wide) - 1.0 for p in params]
        else:
            draws = [torch.randn(p.shape, generator=generator, dtype=wide) for p in params]
            length = math.sqrt(sum(float(t.square().sum()) for t in draws))
            size = float(torch.rand((), generator=generator)) ** (1.0 / sum(t.numel() for t in draws))
            draws = [size / length * t for t in draws]
        return [t.to(p.device, working(p).dtype) for t, p in zip(draws, params, strict=True)]


def _each(visit: Visit) -> list[Visit]:
    """The visit, trial by trial."""
    return [
        Visit(visit.losses[i : i + 1], {n: t[i : i + 1] for n, t in visit.extras.items()}, [])
        for i in range(len(visit.losses))
    ]


def _weight_bytes(params: Sequence[Tensor]) -> int:
    return sum(p.numel() * working(p).element_size() for p in params)
