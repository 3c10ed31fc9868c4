"""A step of ``SAMOptimizer`` between its two evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowland.sam.ascent import Ascent
from lowland.sam.average import Gradients, dense
from lowland.sam.climbing import Climbing
from lowland.sam.combine import Combine
from lowland.sam.noise import Noise
from lowland.sam.part import Call, Parts
from lowland.sam.perturb import perturbed
from lowland.sam.precision import HALF, working
from lowland.sam.radii import Radii
from lowland.sam.vectors import One, Shown
from lowland.sam.workspace import Workspace


@dataclass
class OpenStep:
    """A step that was begun.

    Attributes:
        call: What the parts were told.
        names: Names of the trainable parameters, if they have some.
        put_back_parts: Lets the parts be what they were.
        radii: Radii of the trainable parameters.
        climbed: Whether the weights moved.
        undo: Puts them back.
        at_weights: The gradients of the first pass, if a rule asks for them.
    """

    call: Call
    names: list[str] | None
    put_back_parts: Callable[[], None]
    radii: Radii = field(default_factory=lambda: Radii.of(0.0, 0))
    climbed: bool = False
    undo: ExitStack = field(default_factory=ExitStack)
    at_weights: Gradients = field(default_factory=list)

    @torch.no_grad()
    def climb(self, ascent: Ascent, scale: float, workspace: Workspace, *, keep: bool) -> None:
        """Moves the weights along ``.grad``, if there is somewhere to climb."""
        params = self.call.params
        gradients = _gradients(params)
        if params and all(g is None for g in gradients):
            raise ValueError(
                "loss must depend on the params, got a gradient for none of them "
                "(it may be the loss of another model)."
            )
        if not self.call.climbs:
            return
        if keep:
            self.at_weights = [None if g is None else g.clone() for g in gradients]
        needs_noise = getattr(ascent, "random", False) or any(p.dtype in HALF for p in params)
        noise = Noise.draw() if needs_noise else None
        how = Climbing(ascent, self.radii, Shown.all_that_move(self.radii, params, self.names), noise=noise)
        g = One.along(how.at, gradients, by_row=how.by_row, absent_too=how.absent_too).unscaled(scale)
        if not g.is_finite():
            return
        if how.remembers:
            self.call.climb_gradients = [t.clone() for t in g]
        e = how.step(g, None)
        if isinstance(e, One) and e.at is not None and e.norm() > 0.0:
            self.climbed = True
            block = perturbed(e.at.params, e.everywhere(), noise=noise, workspace=workspace)
            self.undo.enter_context(block)

    @torch.no_grad()
    def end(self, combine: Combine | None, parts: Parts) -> None:
        """Leaves in ``.grad`` what is to be trained with, and tells the parts."""
        params = self.call.params
        if combine is not None and self.climbed:
            self._combine(combine, params)
        self.call.gradients = [p.grad for p in params]
        parts.end(self.call)
        for p, g in zip(params, self.call.gradients, strict=True):
            p.grad = g

    def put_back_all(self) -> None:
        """The weights and the parts as they were."""
        self.undo.close()
        self.put_back_parts()

    def _combine(self, combine: Combine, params: Sequence[Tensor]) -> None:
        after = _gradients(params)
        combined = combine(dense(self.at_weights, params), dense(after, params))
        for p, g, *used in zip(params, combined, self.at_weights, after, strict=True):
            p.grad = None if all(u is None for u in used) else g.to(p.dtype)


def _gradients(params: Sequence[Tensor]) -> Gradients:
    return [None if p.grad is None else working(p.grad) for p in params]
