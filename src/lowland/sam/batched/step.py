"""What is done with groups that are run at once, as a function of tensors."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.algorithm import climb_from_start
from lowland.sam.batched.look import ManyGroups
from lowland.sam.batched.precision import autocast_off
from lowland.sam.climbing import Climbing
from lowland.sam.engine import Plan
from lowland.sam.looks.world import World
from lowland.sam.objective import Objective
from lowland.sam.stacked import Stacked, structure
from lowland.sam.total import Found


class Otherwise(Exception):
    """A recorded step is to be run as it is: the host would have decided otherwise than at that time."""


@dataclass
class Step:
    """The passes of some groups, and the climbs between them.

    Attributes:
        plan: What is asked for.
        batch: The groups.
        sources: The groups that these climb on; ``None`` for themselves.
        masses: Weights of the groups in means, on the CPU, in double precision.
        cuts: Whether m cuts the batch, so that the loss must touch its arguments.
        follow: Whether these are the next groups of the batch, so that running statistics may move.
    """

    plan: Plan
    batch: Stacked
    sources: Stacked | None
    masses: Float[Tensor, " groups"]
    cuts: bool
    follow: bool
    _looks: list[ManyGroups] = field(default_factory=list)

    def run(self, world: World, *, radius: Any = None, scale: Tensor | None = None) -> Found:
        """What the passes find.

        Args:
            world: What they all see alike.
            radius: The radius as a tensor, for a step that is recorded: there a number would be a constant.
            scale: The scale likewise.
        """
        plan, how, objective = self.plan, self.plan.how, self.plan.objective
        self._looks = []
        if radius is not None:
            how = replace(how, radii=replace(how.radii, rho=radius))
        if scale is not None:
            objective = replace(objective, scale=scale)
        look = self._look(replace(objective, cuts=self.cuts), how, self.batch, world, follow=self.follow)
        climb = None
        if self.sources is not None and how.radii.move:
            source = self._look(objective, how, self.sources, world, follow=True)
            climb = partial(climb_from_start, plan.penalized(source), how)
        with torch.no_grad(), autocast_off(objective.params[0]):
            return plan.found(plan.penalized(look), how, climb)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Those of the groups, and of what they climb on."""
        stacked = [self.batch, *([] if self.sources is None else [self.sources])]
        return [t for s in stacked for t in (*s.leaves, *s.beside())]

    def structure(self) -> Hashable:
        """What the groups hold beside tensors."""
        return structure(self.batch.part), None if self.sources is None else structure(self.sources.part)

    def require_gone(self) -> None:
        """Refuses a loss that keeps a tensor of a pass."""
        for look in self._looks:
            look.require_gone()

    def _look(
        self, objective: Objective, how: Climbing, batch: Stacked, world: World, *, follow: bool
    ) -> ManyGroups:
        look = ManyGroups(objective, how, batch, self.masses, world, follow=follow)
        self._looks.append(look)
        return look


def masses_of(plan: Plan, indices: list[int]) -> Float[Tensor, " groups"]:
    """Weights of some groups in means."""
    return torch.tensor([plan.masses[i] for i in indices], dtype=torch.float64, device="cpu")
