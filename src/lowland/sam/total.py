"""What a call returns, gathered from its groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.algorithm import Passes
from lowland.sam.average import Average, Gradients, dense
from lowland.sam.batch import join
from lowland.sam.combine import Combine
from lowland.sam.diagnostics import Diagnostics, diagnosed, together
from lowland.sam.looks.look import Look, Pass
from lowland.sam.precision import working
from lowland.sam.reductions import Reductions
from lowland.sam.vectors import any_of
from lowland.sam.workspace import Workspace


@dataclass(frozen=True)
class SAMGradient:
    """What :func:`sam_gradient` returns.

    Attributes:
        gradients: One tensor per parameter, times ``scale``; ``None`` for a parameter that the loss did
            not use in any group.
        loss: Mean objective of the batch at the unperturbed weights, without ``scale``; at the perturbed
            ones with an ascent that needs no gradient, unless ``combine`` or ``diagnostics`` ask for more.
        aux: What the loss returned beside its value at the unperturbed weights, joined over the groups:
            tensors along their first dimension, scalars as a vector; ``None`` if it returned a value only.
        diagnostics: Per group; ``None`` unless asked for.
        climb_gradients: Gradients that the climbs started from, averaged over the groups, without
            ``scale``, of the parameters with a radius; ``None`` unless the ascent remembers them, and if
            one was not finite.
    """

    gradients: list[Tensor | None]
    loss: Float[Tensor, ""]
    aux: Any
    diagnostics: Diagnostics | None
    climb_gradients: list[Tensor] | None = None


@runtime_checkable
class Then(Protocol):
    """What is to be done with a result, as part of the call.

    Attributes:
        workspace: Memory that is reused from call to call.
        reductions: What data-parallel modules do in the call.
        deposits: Whether it adds the gradients to ``.grad``.
    """

    workspace: Workspace
    reductions: Reductions
    deposits: bool

    def check(self, num_examples: int) -> None:
        """Refuses a batch of so many examples, before the first pass over it."""

    def __call__(self, result: SAMGradient) -> None:
        """Does it, or fails and leaves nothing done."""
        ...

    def done(self) -> bool:
        """Whether it was done: an interrupt that comes afterwards undoes nothing."""
        ...


@dataclass
class Found:
    """What the passes of some groups found.

    Attributes:
        perturbed: The weighted mean over the groups of the gradients of the last pass.
        unperturbed: The same of the first pass; ``None`` unless a rule asks for it.
        climb_gradients: The same of those that the climbs started from; ``None`` unless they are remembered.
        loss: The weighted mean of the objectives of the first pass.
        aux: What the loss returned beside its value in the first pass.
        climbed: Whether some group's weights moved, where the length of perturbations is asked for.
        connected: Whether any parameter got a gradient from the loss itself.
        finite: Whether no gradient ended a climb by not being so.
        diagnostics: What the climbs did; ``None`` unless asked for.
    """

    perturbed: Gradients
    unperturbed: Gradients | None
    climb_gradients: Gradients | None
    loss: Tensor
    aux: list[Any]
    climbed: bool
    connected: bool
    finite: bool
    diagnostics: Diagnostics | None

    @classmethod
    @torch.no_grad()
    def by(cls, look: Look, passes: Passes, *, combines: bool) -> Found:
        """What the ``passes`` of the groups of ``look`` found, for a rule if one ``combines``."""
        climb = passes.climb
        return cls(
            _mean(look, passes.perturbed),
            _mean(look, passes.at_weights) if combines else None,
            None if climb.remembered is None else look.summed(climb.remembered).formed(),
            _of_groups(look, passes.at_weights.losses),
            passes.at_weights.aux,
            any_of(climb.length > 0.0),
            passes.at_weights.connected or passes.perturbed.connected,
            climb.stopped is None,
            diagnosed(look, passes) if look.objective.measure else None,
        )


class Total:
    """Means over groups, each weighted by its share of the examples.

    Attributes:
        places: The groups that are in them, in the order in which they came.
    """

    def __init__(self) -> None:
        self._perturbed, self._unperturbed = Average(), Average()
        self._climb_gradients, self._losses = Average(), Average()
        self._aux: list[tuple[int, Any]] = []
        self._rows: list[Diagnostics] = []
        self.places: list[int] = []
        self._climbed = False
        self._connected = False
        self._all_finite = True
        self._type = torch.float32

    @torch.no_grad()
    def add(self, found: Found, weight: float, places: Sequence[int]) -> None:
        """Takes what was found of some groups, the ``places`` of the batch, into the means."""
        self.places.extend(places)
        self._perturbed.add(found.perturbed, weight)
        if found.unperturbed is not None:
            self._unperturbed.add(found.unperturbed, weight)
        if found.climb_gradients is not None:
            self._climb_gradients.add(found.climb_gradients, weight)
        self._losses.add([found.loss], weight)
        self._type = found.loss.dtype
        each = found.aux  # of one group that is evaluated in parts, of each part
        self._aux.extend(zip(places if len(places) > 1 else [*places] * len(each), each, strict=True))
        self._climbed = self._climbed or found.climbed
        self._connected = self._connected or found.connected
        self._all_finite = self._all_finite and found.finite
        if found.diagnostics is not None:
            self._rows.append(found.diagnostics)

    def result(self, params: list[Tensor], combine: Combine | None, *, times: float = 1.0) -> SAMGradient:
        """What the call returns, by the rule ``combine``, as the objective of ``times`` as much."""
        if self._losses.weight == 0.0:
            raise ValueError("batch must hold at least one example of positive weight, got none.")
        if not self._connected:
            raise ValueError(
                "loss must depend on the params, got a gradient for none of them "
                "(it may be the loss of another model)."
            )
        (loss,) = self._losses.result()
        assert loss is not None
        aux = join([found for _, found in sorted(self._aux, key=itemgetter(0))])
        gradients = [
            None if g is None else (g if times == 1.0 else g * times).to(p.dtype)
            for g, p in zip(self._combined(params, combine), params, strict=True)
        ]
        self._perturbed, self._unperturbed = (
            Average(),
            Average(),
        )  # who alone holds a gradient need not copy it
        remembered = [g for g in self._climb_gradients.result() if g is not None]
        return SAMGradient(
            gradients,
            (loss * times).to(self._type),
            aux,
            together(self._rows, self.places) if self._rows else None,
            remembered if remembered and self._all_finite else None,
        )

    @torch.no_grad()
    def _combined(self, params: list[Tensor], combine: Combine | None) -> Gradients:
        perturbed = self._perturbed.result()
        if combine is None or not self._climbed:
            return perturbed
        unperturbed = self._unperturbed.result()
        both = ([working(g) for g in dense(means, params)] for means in (unperturbed, perturbed))
        combined = combine(*both)
        used = [a is not None or b is not None for a, b in zip(unperturbed, perturbed, strict=True)]
        return [g if u else None for g, u in zip(combined, used, strict=True)]


def _mean(look: Look, seen: Pass) -> Gradients:
    """The weighted mean over the groups of the gradients of a pass."""
    mean = look.summed(seen.gradient) if seen.mean is None else seen.mean
    return mean.formed()


def _of_groups(look: Look, losses: Tensor) -> Tensor:
    """The weighted mean of the groups' losses."""
    if losses.dim() == 0:
        return losses
    return (losses * (look.masses / look.masses.sum()).to(losses)).sum()
