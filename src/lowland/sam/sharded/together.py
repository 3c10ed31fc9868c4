"""The look at one group of all ranks together: every rank moves its own shards along the reduced gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lowland.sam.average import Gradients
from lowland.sam.linearized import Linearized
from lowland.sam.looks.look import Pass
from lowland.sam.looks.one_group import OneGroup
from lowland.sam.perturb import Moved, seen_as_perturbed
from lowland.sam.precision import working
from lowland.sam.sharded.shards import Shards
from lowland.sam.vectors import One

if TYPE_CHECKING:
    from lowland.sam.sharded.sharded import Sharded


@dataclass(kw_only=True)
class Together(OneGroup):
    """The i-th groups of all ranks as one group, whose parameters are the shards of this rank.

    FSDP takes the mean of the ranks' gradients in each backward pass, so that all see the same.

    Attributes:
        sharded: The model.
        climbs: What this rank's loss counts in that mean while the group climbs.
        counts: The same in the last pass.
    """

    sharded: Sharded
    climbs: float
    counts: float

    def shown(self, seen: Pass) -> One:
        """The gradient of the weights that may move, without the scale."""
        how = self.how
        assert isinstance(seen.gradient, One)
        found = One.along(how.at, seen.gradient.formed(), by_row=how.by_row, absent_too=how.absent_too)
        whole = self._vector(list(found.tensors))
        whole.at = found.at
        return whole.unscaled(float(self.objective.scale))

    def _vector(self, tensors: Gradients, factor: float = 1.0) -> One:
        return Shards(tensors, factor, added=self.sharded.added)

    @contextmanager
    def _moved(self, e: One | None) -> Iterator[Moved | None]:
        """Weights are gathered where they stand in the block, and again where they stand after it."""
        if e is None or e.at is None:
            yield None
            return
        block = super()._moved(e)
        del e  # half the memory of a step, where nobody else holds it
        with seen_as_perturbed(self.objective.names_too), block as moved:
            self.sharded.units.put_away()
            yield moved
            self.sharded.units.put_away()

    def _realised(self, moved: Moved | None) -> tuple[float, float] | None:
        if moved is None or not self.objective.measure:
            return None
        numbers = [moved.norm() ** 2, float(moved.count()), float(self._num_moving())]
        square, count, total = self.sharded.added(numbers)
        return math.sqrt(square), count / total

    def _num_moving(self) -> int:
        return sum(p.numel() for p in self.how.radii.moving(self.objective.params))

    def _differentiated(
        self, value: Tensor, wanted: Sequence[int] | None, linearized: Linearized | None, *, last: bool
    ) -> Gradients:
        """Shards of the ranks' mean gradient of the scaled ``value``."""
        assert linearized is None
        objective = self.objective
        objective.require_gradient(value)
        if objective.others is not None:
            objective.others.note(value)
        found = self.sharded.reduced(objective.scaled(value) * (self.counts if last else self.climbs))
        places = range(len(found)) if wanted is None else wanted
        gradients: Gradients = [None] * len(found)
        for i in places:
            g = found[i]
            gradients[i] = g if g is None or last else working(g)
        return gradients
