"""The climbs of all groups at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.ascent import (
    L2,
    Adaptive,
    AscentStep,
    ClippedUnnormalized,
    Unified,
    Unnormalized,
    Weights,
)
from lowland.sam.ascent.ball import largest_factor
from lowland.sam.batched.norms import squared_norms
from lowland.sam.batched.per_group import PerGroup, mapped
from lowland.sam.climb import Climber
from lowland.sam.noise import Noise
from lowland.sam.precision import working

Gradient = list[PerGroup]
"""One entry per parameter."""


class NotFinite(Exception):
    """Some group's gradient is not finite."""


@dataclass(frozen=True)
class Moves:
    """Where the groups climb to.

    Attributes:
        e: One perturbation per parameter; ``None`` for those that do not move.
        gradient_norms: The l2 norm of the gradient that each group started from.
        lengths: The l2 norm of each perturbation; zeros unless measured.
    """

    e: list[PerGroup | None]
    gradient_norms: Float[Tensor, " groups"]
    lengths: Float[Tensor, " groups"]


@dataclass(frozen=True)
class GroupsClimber:
    """The climb of a :class:`Climber`, for all groups at once."""

    climber: Climber
    params: list[Tensor]
    groups: int
    noise: Noise | None
    keeps_gradient: bool

    @property
    def forms(self) -> bool:
        """Whether the ascent needs every group's gradient formed."""
        return self._in_units or type(self.climber.ascent) not in _BALLS

    def climb(self, start: Gradient, again: Callable[[list[PerGroup | None]], Gradient]) -> Moves:
        """The perturbations, from the gradients at the weights; ``again`` is the gradient elsewhere."""
        radii = self.climber.radii
        e: Gradient | None = None
        norms = None
        for step in range(self.climber.steps):
            found = start if step == 0 or e is None else again(self.moves(e))
            g = [found[i] for i in radii.indices]
            lengths = squared_norms(g, self.groups).sqrt()
            norms = lengths if norms is None else norms
            if not bool((lengths <= _largest_norm(g)).all()):
                raise NotFinite
            e = self._step(g, lengths, e)
        assert e is not None
        assert norms is not None
        return self._ended(self.moves(e), norms)

    def blind(self) -> Moves:
        """The perturbations of an ascent that needs no gradient."""
        blind = self.climber.blind
        assert blind is not None
        rows = [
            blind.without_gradient(Weights(self._moving, self._rho, self._names, self.noise))
            for _ in range(self.groups)
        ]
        e = self._stacked([None if r is None else list(r) for r in rows])
        return self._ended(self.moves(e), torch.full((self.groups,), torch.nan, device="cpu"))

    def moves(self, e: Sequence[PerGroup]) -> list[PerGroup | None]:
        """Perturbations of all parameters from those of the ones that move, each in its own units."""
        radii = self.climber.radii
        found: list[PerGroup | None] = [None] * len(self.params)
        for i, ratio, t in zip(radii.indices, radii.ratios, e, strict=True):
            scaled = (
                t
                if ratio == 1.0
                else t.scaled(torch.full((self.groups,), ratio, dtype=torch.float64, device="cpu"))
            )
            found[i] = None if t.absent else scaled
        return found

    @property
    def _rho(self) -> float:
        return self.climber.radii.rho

    @property
    def _moving(self) -> list[Tensor]:
        return [self.params[i] for i in self.climber.radii.indices]

    @property
    def _names(self) -> list[str] | None:
        names = self.climber.names
        return None if names is None else [names[i] for i in self.climber.radii.indices]

    @property
    def _in_units(self) -> bool:
        ascent = self.climber.ascent
        return type(ascent) is Adaptive and ascent.by == "element"

    def _ended(self, moves: list[PerGroup | None], norms: Tensor) -> Moves:
        lengths = torch.zeros(self.groups, device="cpu")
        if self.climber.measure:
            lengths = squared_norms([m for m in moves if m is not None], self.groups).sqrt()
        return Moves(moves, norms, lengths)

    def _step(self, g: Gradient, norms: Tensor, e: Gradient | None) -> Gradient:
        ascent = self.climber.ascent
        if type(ascent) is Adaptive:
            return self._step_in_units(ascent, g, e)
        if type(ascent) in _BALLS:
            return self._along(ascent, g, norms, e)
        return self._one_by_one(g, norms, e)

    def _along(self, ascent: object, g: Gradient, norms: Tensor, e: Gradient | None) -> Gradient:
        """A step along the gradient, and back into the ball if the ascent has one."""
        size = self._rho * self.climber.step_size
        factors = _factor(ascent, size, norms, largest_factor([t.w for t in g if not t.absent]))
        step = _scaled(g, factors, gone=self.climber.steps == 1 and not self.keeps_gradient)
        moved = step if e is None else [s.plus(t) for s, t in zip(e, step, strict=True)]
        if isinstance(ascent, Unnormalized | Unified) or (
            type(ascent) is L2 and e is None and size <= self._rho
        ):
            return moved
        return self._within_ball(moved)

    def _within_ball(self, e: Gradient) -> Gradient:
        lengths = squared_norms(e, self.groups).sqrt()
        shrink = torch.where(lengths > self._rho, self._rho / lengths, torch.ones_like(lengths))
        return _scaled(e, shrink, gone=False)

    def _step_in_units(self, ascent: Adaptive, g: Gradient, e: Gradient | None) -> Gradient:
        """The step of :class:`L2` for ``T g`` and ``e / T``."""
        units = ascent.scales(self._moving, self._names)

        def measured(tensors: Gradient, *, inverse: bool = False) -> Gradient:
            return [
                t if u is None or t.absent else t.times(_inverse(u) if inverse else u)
                for t, u in zip(tensors, units, strict=True)
            ]

        scaled = measured(g)
        norms = squared_norms(scaled, self.groups).sqrt()
        before = None if e is None else measured(e, inverse=True)
        return measured(self._along(L2(), scaled, norms, before))

    def _one_by_one(self, g: Gradient, norms: Tensor, e: Gradient | None) -> Gradient:
        """The step of any ascent, asked once per group, with everything formed."""
        formed = [t.whole(self.groups) for t in g]
        before = None if e is None else [t.whole(self.groups) for t in e]
        rows = []
        size = self._rho * self.climber.step_size
        for k, norm in enumerate(norms.tolist()):
            own = None if before is None else [t[k] for t in before]
            step = AscentStep(
                self._moving,
                own,
                [t[k] for t in formed],
                norm,
                size,
                self._rho,
                names=self._names,
                noise=self.noise,
            )
            assert self.climber.blind is None
            found = self.climber.ascent(step)  # type: ignore[operator]
            rows.append(own if found is None else list(found))
        return self._stacked(rows)

    def _stacked(self, rows: list[list[Tensor] | None]) -> Gradient:
        zeros = [torch.zeros_like(working(w.detach())) for w in self._moving]
        columns = zip(*(zeros if row is None else row for row in rows), strict=True)
        return [
            PerGroup(w, dense=torch.stack(column)) for w, column in zip(self._moving, columns, strict=True)
        ]


_BALLS = {L2, Unnormalized, ClippedUnnormalized, Unified, Adaptive}
"""Ascents whose perturbation is a combination of gradients; exactly these, no subclasses."""


def _factor(ascent: object, size: float, norms: Tensor, largest: float) -> Float[Tensor, " groups"]:
    """What multiplies each group's gradient in a step; 0 where it is too small to be normalized."""
    if isinstance(ascent, Unnormalized | ClippedUnnormalized):
        return torch.full_like(norms, size)
    lam = ascent.lam if isinstance(ascent, Unified) else 1.0
    factors = size * (1.0 - lam + lam / norms)
    vanishes = (norms == 0.0) | (size / norms > largest)
    return (
        torch.where(vanishes, torch.zeros_like(norms), factors) if lam > 0 else torch.full_like(norms, size)
    )


def _scaled(g: Gradient, factors: Float[Tensor, " groups"], *, gone: bool) -> Gradient:
    """Each group's tensors times its factor, in place where they are ``gone`` afterwards."""
    if any(f > 1.0 / _MODEST or 0.0 < f < _MODEST for f in factors.tolist()):
        return mapped(g, lambda t: t.balanced(factors))
    return mapped(g, lambda t: t.scale_(factors) if gone else t.scaled(factors))


_MODEST = 2.0**-30
"""Factors between this and its inverse leave products with what is scaled in the range of a type."""


def _largest_norm(g: Gradient) -> float:
    """The largest norm that the type of a norm over all of ``g`` holds."""
    return max(torch.finfo(torch.promote_types(t.w.dtype, torch.float32)).max for t in g)


def _inverse(u: Tensor) -> Tensor:
    return torch.where(u == 0, torch.zeros_like(u), 1.0 / u)


def with_penalty(
    gradient: Gradient, wanted: Sequence[int], e: Sequence[PerGroup | None] | None, l2: float, groups: int
) -> Gradient:
    r"""Gradients of :math:`L_S + \frac\lambda2 \|w\|^2` at :math:`w + e_S`, from those of :math:`L_S`."""
    found = list(gradient)
    for i in wanted if l2 > 0.0 else ():
        factor = torch.full((groups,), l2, dtype=torch.float64, device=found[i].w.device)
        found[i] = found[i].plus(PerGroup(found[i].w, along=factor))
        move = None if e is None else e[i]
        if move is not None:
            found[i] = found[i].plus(move.scaled(factor))
    return found
