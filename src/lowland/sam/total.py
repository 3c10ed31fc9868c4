"""What a call returns, gathered from its groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.average import Average, Gradients, dense
from lowland.sam.batch import join
from lowland.sam.combine import Combine
from lowland.sam.diagnostics import Diagnostics, GroupDiagnostics, together
from lowland.sam.group import GroupPasses
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
    """

    workspace: Workspace

    def __call__(self, result: SAMGradient) -> None:
        """Does it, or fails and leaves nothing done."""
        ...

    def done(self) -> bool:
        """Whether it was done: an interrupt that comes afterwards undoes nothing."""
        ...


@dataclass(frozen=True)
class GroupsFound:
    """What several groups contribute to a call's result; gradients are weighted means over them.

    Attributes:
        weight: Sum of the groups' weights.
        losses: The objective of each group at the weights.
        masses: Weight of each group.
        aux: What the loss returned beside its value, group by group.
        perturbed: Gradients at the perturbed weights.
        unperturbed: Gradients at the weights; empty unless asked for.
        climb_gradients: Gradients that the climbs started from; empty unless remembered.
        rows: Diagnostics of each group; empty unless measured.
        climbed: Whether any group moved.
        connected: Whether any parameter got a gradient from the loss itself.
    """

    weight: float
    losses: Float[Tensor, " groups"]
    masses: list[float]
    aux: list[Any]
    perturbed: Gradients
    unperturbed: Gradients
    climb_gradients: Gradients
    rows: list[GroupDiagnostics]
    climbed: bool
    connected: bool


class Total:
    """Means over groups, each weighted by its share of the examples."""

    def __init__(self, *, keep_unperturbed: bool, measure: bool) -> None:
        self._keep_unperturbed = keep_unperturbed
        self._measure = measure
        self._perturbed, self._unperturbed = Average(), Average()
        self._climb_gradients, self._losses = Average(), Average()
        self._aux: list[Any] = []
        self._rows: list[GroupDiagnostics] = []
        self._climbed = False
        self._connected = False
        self._all_finite = True

    def add(self, size: float, group: GroupPasses) -> None:
        """Takes a group of weight ``size`` into the means."""
        self._perturbed.add(group.perturbed.gradients, size)
        if self._keep_unperturbed:
            self._unperturbed.add(group.at_weights.gradients, size)
        if group.climb.gradients is not None:
            self._climb_gradients.add(group.climb.gradients, size)
        self._losses.add([group.at_weights.loss], size)
        self._aux.extend(group.at_weights.aux)
        self._climbed = self._climbed or group.climb.move is not None
        self._connected = self._connected or group.at_weights.connected or group.perturbed.connected
        self._all_finite = self._all_finite and group.climb.not_finite is None
        if self._measure:
            self._rows.append(GroupDiagnostics.of(size, group))

    def add_groups(self, found: GroupsFound) -> None:
        """Takes several groups, run at once, into the means."""
        self._perturbed.add(found.perturbed, found.weight)
        if self._keep_unperturbed:
            self._unperturbed.add(found.unperturbed, found.weight)
        if found.climb_gradients:
            self._climb_gradients.add(found.climb_gradients, found.weight)
        share = torch.tensor(found.masses, dtype=torch.float64, device="cpu").to(found.losses) / found.weight
        self._losses.add([(found.losses * share).sum()], found.weight)
        self._aux.extend(found.aux)
        self._climbed = self._climbed or found.climbed
        self._connected = self._connected or found.connected
        self._rows.extend(found.rows)

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
        aux = join(self._aux)
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
            loss * times,
            aux,
            together(self._rows) if self._measure else None,
            remembered if remembered and self._all_finite else None,
        )

    @torch.no_grad()
    def _combined(self, params: list[Tensor], combine: Combine | None) -> Gradients:
        perturbed = self._perturbed.result()
        if combine is None or not self._climbed:
            return perturbed
        unperturbed = self._unperturbed.result()
        combined = combine(dense(unperturbed, params), dense(perturbed, params))
        used = [a is not None or b is not None for a, b in zip(unperturbed, perturbed, strict=True)]
        return [g if u else None for g, u in zip(combined, used, strict=True)]
