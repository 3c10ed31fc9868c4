"""Which look runs which groups: one after the other, or many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torch.distributed import ProcessGroup

from lowland.sam.algorithm import Climb, climb_from_start, m_sam
from lowland.sam.arguments import Engine
from lowland.sam.batch import MicroBatches
from lowland.sam.climbing import Climbing
from lowland.sam.examples import Examples
from lowland.sam.grouped import Grouped
from lowland.sam.looks.look import Look
from lowland.sam.looks.one_group import OneGroup
from lowland.sam.looks.penalized import Penalized
from lowland.sam.looks.world import World
from lowland.sam.objective import Objective
from lowland.sam.said import loss_key, warn_once
from lowland.sam.total import Found, Total
from lowland.sam.unbatchable import Unbatchable, unless_torch_lacks_it

if TYPE_CHECKING:
    from lowland.sam.captures import Captures


@dataclass
class Attempt:
    """Groups that are run together.

    Attributes:
        run: Runs them, once the block has begun.
        block: Where they are run; what was found there is taken into the means at its end.
        found: What was found.
    """

    run: Callable[[], Found] = field(init=False)
    block: AbstractContextManager[object] = field(default_factory=nullcontext)
    found: Found = field(init=False)

    def hand_over(self) -> Found:
        """What was found, which is not held here any longer: who alone holds a gradient need not copy it."""
        found = self.found
        del self.found
        return found


@dataclass(frozen=True)
class Plan:
    """How the groups of a call are run.

    Attributes:
        objective: The loss and its policies.
        how: The climb.
        l2: Weight of the l2 term.
        total: The means over groups.
        groups: The groups of the batch.
        sources: The groups that these climb on, from the start again where there are fewer; all examples
            as one group, in parts; ``None`` for the groups themselves.
        engine: Which engine.
        max_memory: Bytes that running groups at once may take.
        process_group: Processes whose i-th groups climb together.
        combines: Whether a rule asks for the gradients at the unperturbed weights, too.
        captures: Where steps at many groups at once are recorded; ``None`` for nowhere.
    """

    objective: Objective
    how: Climbing
    l2: float
    total: Total
    groups: Grouped
    sources: Grouped | MicroBatches | None
    engine: Engine
    max_memory: int | None
    process_group: ProcessGroup | None
    combines: bool = False
    captures: Captures | None = None

    def attempts(self) -> Iterator[Attempt]:
        """All groups; those of weight 0 are left out."""
        weighed = [i for i, mass in enumerate(self.masses) if mass > 0.0]
        if self.engine == "loop" or (self.engine == "auto" and self._too_small(len(weighed))):
            return self.one_by_one(weighed)
        try:
            with unless_torch_lacks_it():
                from lowland.sam.batched.at_once import AtOnce
        except Unbatchable as error:
            return self.fall_back(weighed, error)
        return AtOnce(self).attempts(weighed)

    def one_by_one(self, indices: Sequence[int]) -> Iterator[Attempt]:
        """Groups that are run by themselves."""
        for i in indices:
            attempt = Attempt()
            attempt.block = self._alone(i, attempt)
            yield attempt

    def fall_back(self, indices: Sequence[int], error: Unbatchable) -> Iterator[Attempt]:
        """Groups that cannot be run at once, by themselves, which is said the first time."""
        if self.engine == "batched":
            raise error
        yield from self.one_by_one(indices)
        if len(self.groups) > 1:
            key = loss_key(self.objective.loss), error.what
            warn_once(self.objective.params[0], key, error.done_instead)

    def mass(self, i: int) -> float:
        """Weight of a group in the mean."""
        return self.masses[i]

    @cached_property
    def masses(self) -> list[float]:
        """Weights of all groups."""
        if self.objective.weight is None:
            return [float(size or 1) for size in self.groups.sizes]
        groups = (self.groups.group(i) for i in range(len(self.groups)))
        return [sum(self.objective.mass(*sized) for sized in group.sized()) for group in groups]

    @cached_property
    def times(self) -> float:
        """What the mean over groups is multiplied with."""
        if self.objective.reduction == "mean":
            return 1.0
        return sum(self.masses)

    def penalized(self, look: Any) -> Any:
        """The look with the l2 term, if there is one."""
        return Penalized(look, self.l2 / self.times) if self.l2 > 0.0 else look

    @cached_property
    def _shared(self) -> dict[int, Climb]:
        """Climbs on which several groups are perturbed."""
        return {}

    @property
    def shares_sources(self) -> bool:
        """Whether several groups climb on the same examples."""
        if self.sources is None or isinstance(self.sources, MicroBatches):
            return self.sources is not None
        return len(self.sources) < len(self.groups)

    def _too_small(self, groups: int) -> bool:
        """Whether running all groups at once costs more than the loop does around its passes."""
        from lowland.sam.batched.cost import around, machine

        params = self.objective.params
        at = machine(params[0].device, captured=self.captures is not None)
        return around(groups, sum(p.numel() for p in params), at) < at.chunk

    @contextmanager
    def _alone(self, i: int, attempt: Attempt) -> Iterator[None]:
        world = World(self.objective)
        cuts = i == 0 and len(self.groups) > 1
        objective = replace(self.objective, cuts=True) if cuts else self.objective
        with self.groups.lent(i) as group:
            look = self._look(objective, group, self.mass(i), world)
            source = None if self.sources is None else partial(self._climb_on_source, i, world)
            attempt.run = partial(self.found, look, self.how, source)
            yield
        self.total.add(attempt.hand_over(), self.mass(i), [i])

    def found(self, look: Look, how: Climbing, source: Callable[[], Climb] | None) -> Found:
        """What the passes of the groups of a look find."""
        return Found.by(look, m_sam(look, how, source), combines=self.combines)

    def _look(self, objective: Objective, group: Examples, mass: float, world: World) -> Look:
        look: Look = self.penalized(OneGroup(objective, self.how, group, mass, world, self.process_group))
        return look

    def _climb_on_source(self, i: int, world: World) -> Climb:
        """The climb of the i-th group on its source; where several groups share it, once for all."""
        sources = self.sources
        assert sources is not None
        k = 0 if isinstance(sources, MicroBatches) else i % len(sources)
        if k in self._shared:
            return self._shared[k]
        group = Examples(sources) if isinstance(sources, MicroBatches) else sources.group(k)
        look = self._look(self.objective, group, 1.0, world)
        found = climb_from_start(look, self.how)
        if self.shares_sources:
            self._shared[k] = replace(found, remembered=None)  # remembered once
            if found.e is not None:
                found.e.kept = True
        return found
