"""The climb of one group: which weights move, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lowland.sam.ascent import (
    Ascent,
    AscentStep,
    BlindAscent,
    RememberingAscent,
    StartingAscent,
    Weights,
)
from lowland.sam.average import Gradients
from lowland.sam.examples import Examples
from lowland.sam.kinds import is_a
from lowland.sam.noise import Noise
from lowland.sam.norm import l2_norm
from lowland.sam.passes import Move, Pass, Passes, unscaled
from lowland.sam.precision import working
from lowland.sam.randomness import RandomState
from lowland.sam.ranks import mean_over_ranks
from lowland.sam.scaled import Scaled


@dataclass(frozen=True)
class Radii:
    """Radius of each parameter: which ones move, and how far beside the one that moves farthest.

    Attributes:
        rho: The largest radius.
        indices: Parameters with a radius above zero.
        ratios: Their radii in units of ``rho``.
        partial: Whether some parameters do not move although others do.
    """

    rho: float
    indices: list[int]
    ratios: list[float]
    partial: bool

    @classmethod
    def of(cls, rho: float | Sequence[float], num_params: int) -> Radii:
        """The same radius for all, or one for each."""
        radii = [float(rho)] * num_params if isinstance(rho, (int, float)) else [float(r) for r in rho]
        largest = max(radii, default=0.0)
        indices = [i for i, r in enumerate(radii) if r > 0.0]
        return cls(largest, indices, [radii[i] / largest for i in indices], 0 < len(indices) < num_params)


@dataclass(frozen=True)
class Climb:
    """Where a climb led.

    Attributes:
        move: The perturbation; ``None`` if there was nowhere to climb.
        gradient_norm: The l2 norm of the gradient at the unperturbed weights.
        length: The l2 norm of the perturbation; 0 unless measured.
        gradients: That gradient, unscaled, if it was to be remembered.
        not_finite: The pass whose gradient was not finite, which ended the climb, if there was one.
    """

    move: Move | None
    gradient_norm: float = math.nan
    length: float = 0.0
    gradients: list[Tensor] | None = None
    not_finite: Pass | None = None

    @property
    def led_nowhere(self) -> bool:
        """Whether there was nowhere to climb, for a finite gradient."""
        return self.move is None and self.not_finite is None


@dataclass(frozen=True)
class Climber:
    """Several steps of an ascent.

    ``measure`` asks for the gradient's norm even where it decides nothing, at ``rho = 0``; the ranks of a
    ``process_group`` climb together.
    """

    ascent: Ascent | BlindAscent
    radii: Radii
    steps: int
    step_size: float
    names: Sequence[str] | None
    measure: bool
    process_group: ProcessGroup | None = None

    # What kind an ascent is, is asked once: a runtime-checkable protocol takes longer than a small layer.

    @cached_property
    def blind(self) -> BlindAscent | None:
        """The ascent, if it needs no gradient."""
        return cast(BlindAscent, self.ascent) if is_a(self.ascent, BlindAscent) else None

    @cached_property
    def starting(self) -> StartingAscent | None:
        """The ascent, if its gradient is taken elsewhere."""
        return cast(StartingAscent, self.ascent) if is_a(self.ascent, StartingAscent) else None

    @cached_property
    def remembers(self) -> bool:
        """Whether the ascent remembers gradients."""
        return is_a(self.ascent, RememberingAscent)

    @cached_property
    def _climbing(self) -> Ascent:
        assert not isinstance(self.ascent, BlindAscent)
        return self.ascent

    @property
    def wanted(self) -> list[int] | None:
        """The parameters whose gradients a climb needs; ``None`` if all."""
        return self.radii.indices if self.radii.partial else None

    def without_gradient(self, passes: Passes) -> Climb:
        """The perturbation of an ascent that needs no gradient."""
        assert self.blind is not None
        if self.radii.rho == 0.0:
            return Climb(None)
        seen = _Seen.weights(passes.params, self.names, self.radii)
        e = self.blind.without_gradient(Weights(seen.w, self.radii.rho, seen.names, passes.noise))
        return self._ended(None if e is None else seen.move(e))

    def start(self, passes: Passes) -> Move | None:
        """Where the climb's first gradient is taken; ``None`` for the unperturbed weights."""
        if self.radii.rho == 0.0 or self.starting is None:
            return None
        seen = _Seen.weights(passes.params, self.names, self.radii)
        return seen.move(self.starting.start(Weights(seen.w, self.radii.rho, seen.names, passes.noise)))

    def climb(self, passes: Passes, start: Pass, group: Examples, draws: RandomState) -> Climb:
        """The perturbation of a group from its pass at the unperturbed weights."""
        if self.radii.rho == 0.0:
            return self.nowhere(passes, start)
        here, e, first, move = start, None, None, None
        for step in range(self.steps):
            if step > 0:
                draws.restore()
                here = passes.elsewhere(group, move, self.wanted)
            gradients = self._of_all_ranks(passes, here)
            found = self.step(passes.params, gradients, e, scale=passes.scale, noise=passes.noise)
            first = first or found
            if not math.isfinite(found.norm):
                return Climb(None, first.norm, not_finite=here)
            e, move = found.e, found.move
            if e is None:
                break
        assert first is not None
        return self._ended(move, first.norm, first.g if self.remembers else None)

    def nowhere(self, passes: Passes, start: Pass) -> Climb:
        """The climb without a radius."""
        if self.blind is not None or not self.measure:
            return Climb(None)
        present = [g for g in start.gradients if g is not None]
        return Climb(None, _norm(unscaled(present, passes.scale)))

    def _of_all_ranks(self, passes: Passes, here: Pass) -> Gradients:
        if self.process_group is None:
            return here.gradients
        return mean_over_ranks(
            self.process_group, here.gradients, here.mass, passes.params, self.radii.indices
        )

    def _ended(
        self, move: Move | None, norm: float = math.nan, gradients: list[Tensor] | None = None
    ) -> Climb:
        length = move.norm() if self.measure and move is not None else 0.0
        return Climb(move, norm, length, gradients)

    def step(
        self,
        params: list[Tensor],
        gradients: Gradients,
        e: Sequence[Tensor] | None,
        *,
        scale: float,
        noise: Noise | None,
    ) -> Step:
        """One step of the ascent from the perturbation ``e``, along ``gradients`` of the scaled objective."""
        seen = _Seen.gradients(
            params,
            self.names,
            self.radii,
            gradients,
            by_row=self.steps == 1 and bool(getattr(self.ascent, "by_row", False)),
            absent_too=self.steps > 1 or self.remembers,
        )
        g = unscaled(seen.g, scale)
        norm = _norm(g)
        if not g or not math.isfinite(norm):
            return Step(norm, g, None, None)
        rho = self.radii.rho
        size = rho * self.step_size
        e = self._climbing(AscentStep(seen.w, e, g, norm, size, rho, names=seen.names, noise=noise))
        return Step(norm, g, e, None if e is None else seen.move(e))


@dataclass(frozen=True)
class Step:
    """What one step of an ascent found.

    Attributes:
        norm: The l2 norm of the gradient.
        g: The gradient, unscaled, as the ascent saw it.
        e: The perturbation, as the ascent sees it; ``None`` if there is nowhere to climb.
        move: The perturbation of the parameters.
    """

    norm: float
    g: list[Tensor]
    e: Sequence[Tensor] | None
    move: Move | None


@dataclass
class _Seen:
    """What an ascent is shown: the parameters that may move, of sparse gradients their rows only."""

    params: list[Tensor]
    names: list[str] | None
    ratios: list[float]
    w: list[Tensor]
    g: list[Tensor]
    rows: list[Tensor | None]
    total: int

    @classmethod
    def weights(cls, params: list[Tensor], names: Sequence[str] | None, radii: Radii) -> _Seen:
        moving = [params[i] for i in radii.indices]
        of_moving = None if names is None else [names[i] for i in radii.indices]
        return cls(
            moving,
            of_moving,
            radii.ratios,
            moving,
            [],
            [None] * len(moving),
            sum(p.numel() for p in moving),
        )

    @classmethod
    def gradients(
        cls,
        params: list[Tensor],
        names: Sequence[str] | None,
        radii: Radii,
        gradients: Gradients,
        *,
        by_row: bool,
        absent_too: bool,
    ) -> _Seen:
        total = sum(params[i].numel() for i in radii.indices)
        seen = cls([], None if names is None else [], [], [], [], [], total)
        for i, ratio in zip(radii.indices, radii.ratios, strict=True):
            g = gradients[i]
            if g is None and not absent_too:
                continue
            if names is not None and seen.names is not None:
                seen.names.append(names[i])
            seen.params.append(params[i])
            seen.ratios.append(ratio)
            seen._append(params[i], g, by_row=by_row)
        return seen

    def _append(self, p: Tensor, g: Tensor | None, *, by_row: bool) -> None:
        if g is not None and g.is_sparse and by_row and g.sparse_dim() == 1:
            g = g.coalesce()
            rows = g.indices()[0]
            self.w.append(p.detach().index_select(0, rows))
            self.g.append(g.values())
            self.rows.append(rows)
            return
        self.w.append(p)
        self.g.append(torch.zeros_like(working(p)) if g is None else g.to_dense() if g.is_sparse else g)
        self.rows.append(None)

    def move(self, e: Sequence[Tensor]) -> Move:
        """The perturbation ``e`` of what is seen, as one of the parameters."""
        if all(rows is None for rows in self.rows) and all(ratio == 1.0 for ratio in self.ratios):
            return Move(self.params, e, self.total)
        factor, tensors = (e.factor, e.tensors) if isinstance(e, Scaled) else (1.0, e)
        whole = [
            _whole(p, t if ratio == 1.0 else t * ratio, rows)
            for p, t, ratio, rows in zip(self.params, tensors, self.ratios, self.rows, strict=True)
        ]
        return Move(self.params, Scaled(whole, factor), self.total)


def _whole(p: Tensor, e: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return e
    return torch.sparse_coo_tensor(rows[None], e, p.shape, is_coalesced=True, check_invariants=False)


def _norm(tensors: list[Tensor]) -> float:
    return l2_norm(tensors).item() if tensors else 0.0
