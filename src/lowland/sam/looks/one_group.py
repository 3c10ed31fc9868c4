"""The look at one group: the weights are moved, the loss runs, they are put back. It is the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup

from lowland.sam.ascent.step import Weights
from lowland.sam.average import Average, Gradients
from lowland.sam.caches import fresh_caches
from lowland.sam.climbing import Climbing
from lowland.sam.examples import Examples
from lowland.sam.leaves import nodes_of
from lowland.sam.linearized import Linearized, evaluated
from lowland.sam.linearized import gradients as by_halves
from lowland.sam.looks.look import Drawn, Pass
from lowland.sam.looks.world import World
from lowland.sam.objective import Objective
from lowland.sam.perturb import Moved, perturbed
from lowland.sam.precision import working
from lowland.sam.ranks import mean_over_ranks
from lowland.sam.vectors import One


@dataclass
class OneGroup:
    """A group by itself.

    Attributes:
        objective: The loss.
        how: The climb.
        examples: The group's examples.
        mass: Its weight in means.
        world: What all its passes see alike.
        process_group: Processes whose groups climb together, along the mean of their gradients.
    """

    objective: Objective
    how: Climbing
    examples: Examples
    mass: float
    world: World
    process_group: ProcessGroup | None = None
    _passed = 0.0
    _linearized: dict[int, Linearized] = field(default_factory=dict)

    @property
    def masses(self) -> Float[Tensor, " 1"]:
        """Weights of the groups."""
        return torch.tensor([self.mass], dtype=torch.float64, device="cpu")

    def same_world(self) -> World:
        """The block of all passes."""
        return self.world

    def slope(self, e: One | None, *, first: bool = False) -> Pass:
        """The gradient at ``w + e``, of the parameters that move, or of all if it is asked for itself."""
        wanted = None if first and self.how.both else self.how.radii.wanted
        return self._pass(e, wanted, first=first)

    def mean(self, e: One | None, *, first: bool = False) -> Pass:
        """The gradient at ``w + e``."""
        return self._pass(None if e is None else e.spent(), None, first=first, last=True)

    def value(self, e: One | None, *, first: bool = False) -> Pass:
        """The objective at ``w + e``."""
        with torch.no_grad():
            return self._pass(e, (), first=first)

    def shown(self, seen: Pass) -> One:
        """The gradient of the weights that may move; the mean one of processes that climb together."""
        params, how = self.objective.params, self.how
        assert isinstance(seen.gradient, One)
        gradients = list(seen.gradient.tensors)
        if self.process_group is not None:
            gradients = mean_over_ranks(
                self.process_group, gradients, self._passed, params, how.radii.indices
            )
        found = One.along(how.at, gradients, by_row=how.by_row, absent_too=how.absent_too)
        return found.unscaled(float(self.objective.scale))

    def drawn(self, ask: Drawn) -> One | None:
        """A perturbation that needs no gradient."""
        how, at = self.how, self.how.at
        found = ask(Weights(at.w, how.radii.rho, at.names, how.noise))
        return None if found is None else One((), at=at).like(found)

    def everywhere(self, e: One) -> One:
        """The perturbation of all parameters."""
        tensors: list[Tensor | None] = [None] * len(self.objective.params)
        if e.at is not None:
            for i, t in zip(e.at.indices, e.everywhere().tensors, strict=True):
                tensors[i] = t
        return self._vector(tensors, e.factor)

    def weights(self, e: One | None) -> One:
        """``w + e``."""
        w = self._vector([working(p.detach()) for p in self.objective.params])
        return w if e is None else w.plus(self.everywhere(e))

    def _vector(self, tensors: Gradients, factor: float = 1.0) -> One:
        """A vector of the parameters."""
        return One(tensors, factor)

    def summed(self, v: One) -> One:
        """The vector itself."""
        return v

    def _pass(self, e: One | None, wanted: Sequence[int] | None, *, first: bool, last: bool = False) -> Pass:
        objective, found = self.objective, _Sums()
        self.world.again()
        block = self._moved(e)
        del e  # half the memory of a step, where nobody else holds it
        with block as moved, objective.buffer_policy(first), objective.buffers.writes_noticed():
            parts = (
                self.examples.own(again=not self.how.one_pass) if first else self.examples.copies(last=last)
            )
            for i, (part, examples) in enumerate(parts):
                mass = objective.mass(part, examples)
                if mass == 0.0:
                    continue
                linearized = self._in_halves(i, first=first, last=last)
                with fresh_caches():
                    with objective.touching(part, first=first):
                        value, aux = evaluated(objective, linearized, part, examples, mass)
                    gradients: Gradients = []
                    if torch.is_grad_enabled():
                        gradients = self._differentiated(value, wanted, linearized, last=last)
                    elif linearized is not None:
                        linearized.keep(value)
                found.add(value.detach(), aux, gradients, mass)
            realised = self._realised(moved)
        if first:
            self.world.stays()
        self._passed = found.mass
        return found.seen(self._vector, realised, whole=wanted is None)

    def _in_halves(self, i: int, *, first: bool, last: bool) -> Linearized | None:
        """The loss of the i-th part as functional SAM sees it, in its first pass and its last."""
        if first and self.how.in_halves and self.how.radii.move:
            self._linearized[i] = Linearized(self.objective)
        return self._linearized.get(i) if first or last else None

    def _moved(self, e: One | None) -> AbstractContextManager[Moved | None]:
        if e is None or e.at is None:
            return nullcontext()
        workspace = self.objective.workspace
        return perturbed(e.at.params, e.everywhere(), noise=self.how.noise, workspace=workspace)

    def _realised(self, moved: Moved | None) -> tuple[float, float] | None:
        if moved is None or not self.objective.measure:
            return None
        total = sum(p.numel() for p in self.how.radii.moving(self.objective.params))
        return moved.norm(), moved.count() / total

    def _differentiated(
        self, value: Tensor, wanted: Sequence[int] | None, linearized: Linearized | None, *, last: bool
    ) -> Gradients:
        """Gradients of the scaled ``value``; ``None`` where not ``wanted`` or not used.

        Those that are climbed along have float32 or better, the others the type of their parameter.
        """
        objective = self.objective
        objective.require_gradient(value)
        if objective.others is not None:
            objective.others.note(value)
        scaled = objective.scaled(value)
        places = range(len(objective.params)) if wanted is None else wanted
        with _reentrant_refused():
            found = by_halves(linearized, scaled, [objective.params[i] for i in places], objective.scale)
            if any(g is None for g in found):
                _require_all_seen(value)
        gradients: Gradients = [None] * len(objective.params)
        for i, g in zip(places, found, strict=True):
            gradients[i] = g
        del found
        if objective.in_half and not last:
            for i, g in enumerate(gradients):  # one by one: each goes as it is replaced
                gradients[i] = None if g is None else working(g)
        return gradients


@contextmanager
def _reentrant_refused() -> Iterator[None]:
    """Says what to do about checkpoints that torch does not differentiate so."""
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant=True" in str(error):
            raise ValueError(_REENTRANT) from None
        raise


def _require_all_seen(value: Tensor) -> None:
    """Refuses a reentrant checkpoint that was not asked for its input's gradient: it hides its parameters."""
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes_of(value)):
        raise ValueError(_REENTRANT)


_REENTRANT = (
    "loss must checkpoint its activations with use_reentrant=False, got True, "
    "whose backward pass knows no gradients but those in .grad."
)


class _Sums:
    """Means over the parts of a group."""

    def __init__(self) -> None:
        self._found = Average()
        self._aux: list[Any] = []

    def add(self, value: Tensor, aux: Any, gradients: Gradients, mass: float) -> None:
        self._found.add([value, *gradients], mass)
        self._aux.append(aux)

    @property
    def mass(self) -> float:
        """Weight of the parts."""
        return self._found.weight

    def seen(
        self, vector: Callable[[Gradients], One], realised: tuple[float, float] | None, *, whole: bool
    ) -> Pass:
        if not self._aux:
            raise ValueError("a group must hold at least one example of positive weight, got none.")
        loss, *found = self._found.result()
        assert loss is not None
        gradient = vector(found) if found else None
        connected = any(g is not None for g in found)
        return Pass(loss, self._aux, gradient, gradient if whole else None, realised, connected)
