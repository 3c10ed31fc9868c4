"""One forward and backward pass over a group, and what must be the same for every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lowland.sam.average import Average, Gradients
from lowland.sam.batch import detach
from lowland.sam.before import Before, devices_of
from lowland.sam.buffers import BatchNormStats, Buffers
from lowland.sam.caches import fresh_caches
from lowland.sam.examples import Examples, Part
from lowland.sam.leaves import OtherLeaves
from lowland.sam.noise import Noise
from lowland.sam.norm import l2_norm
from lowland.sam.perturb import Moved, perturbed
from lowland.sam.precision import working
from lowland.sam.randomness import RandomState
from lowland.sam.scaled import Scaled
from lowland.sam.touched import require_touched
from lowland.sam.workspace import Workspace

Loss = Callable[..., Any]
Weight = Callable[..., Any]
Reduction = Literal["mean", "sum"]
"""What a loss does with the losses of its examples."""


@dataclass
class Move:
    """A perturbation ``e`` of ``params``; ``None`` once it was handed over.

    ``total`` is the number of weights that have a radius, whether or not they are among ``params``.
    """

    params: list[Tensor]
    e: Sequence[Tensor] | None
    total: int

    def norm(self) -> float:
        """The l2 norm of ``e``."""
        assert self.e is not None
        factor, tensors = (self.e.factor, self.e.tensors) if isinstance(self.e, Scaled) else (1.0, self.e)
        return abs(factor) * l2_norm(tensors).item()

    @contextmanager
    def made(self, noise: Noise | None, workspace: Workspace, *, last: bool) -> Iterator[Moved]:
        """The weights at ``w + e`` inside the block. After the ``last`` time ``e`` is no longer held."""
        e = self.e
        assert e is not None
        if last:
            self.e = None
        block = perturbed(self.params, e, noise=noise, workspace=workspace)
        del e
        with block as moved:
            yield moved


@dataclass(frozen=True)
class Pass:
    """Objective, aux and gradient of one group at the weights as they stood.

    Attributes:
        loss: The objective, without the scale.
        aux: What the loss returned beside its value, for each of the group's parts.
        gradients: Those of the scaled objective, in float32 or better, ``None`` where a parameter was not
            used or not asked for; empty for a pass that was asked for its value only.
        realised: The l2 norm of the perturbation after rounding, and the share of the weights that it
            moved; ``None`` unless measured.
        mass: Number of examples, or their weight.
        connected: Whether any parameter got a gradient from the loss itself.
    """

    loss: Tensor
    aux: list[Any]
    gradients: Gradients
    realised: tuple[float, float] | None = None
    mass: float = 0.0
    connected: bool = True


@dataclass(frozen=True)
class Passes:
    """The objective ``loss + l2/2 ||w||^2``, evaluated under one policy for buffers and randomness.

    With the reduction ``"sum"`` the loss is divided by the number of examples, or by their ``weight``;
    ``cuts`` asks whether it touches its arguments, ``others`` what else it depends on.
    """

    loss: Loss
    params: list[Tensor]
    l2: float
    scale: float
    bn_stats: BatchNormStats
    buffers: Buffers
    weight: Weight | None
    noise: Noise | None
    workspace: Workspace
    measure: bool
    reduction: Reduction = "mean"
    cuts: bool = False
    others: OtherLeaves | None = None

    @property
    def devices(self) -> list[torch.device]:
        """Devices of the parameters."""
        return devices_of(self.params)

    def at_weights(self, group: Examples, wanted: Sequence[int] | None = None, *, again: bool = True) -> Pass:
        """The pass at the unperturbed weights; gradients of the parameters ``wanted``, all by default."""
        return self._run(group, wanted, first=True, again=again)

    def value_at_weights(self, group: Examples) -> Pass:
        """The same without a gradient."""
        with torch.no_grad():
            return self._run(group, (), first=True)

    def elsewhere(
        self,
        group: Examples,
        move: Move | None,
        wanted: Sequence[int] | None = None,
        *,
        first: bool = False,
        again: bool = True,
        last: bool = False,
    ) -> Pass:
        """The pass at perturbed weights, or for the climb alone (``None``: not perturbed).

        ``first`` marks the pass that stands for plain training: it is given the user's own examples and
        moves running statistics, and ``again`` tells whether others follow. ``last`` marks the last pass
        with this ``move``, whose memory is then free.
        """
        if move is None:
            return self._run(group, wanted, first=first, again=again, last=last)
        with move.made(self.noise, self.workspace, last=last) as moved:
            found = self._run(group, wanted, first=first, again=again, last=last)
            return (
                replace(found, realised=(moved.norm(), moved.count() / move.total)) if self.measure else found
            )

    @contextmanager
    def undone_on_error(self, unless: Callable[[], bool] | None = None) -> Iterator[None]:
        """Everything that passes touch is put back if the block raises.

        Where it raises after all was done, as ``unless`` tells, only what must not stay in any case.
        """
        with self.buffers.watched() as held:
            before = Before(self.params, self.buffers, held, self.workspace)
            try:
                yield
            except BaseException:
                if unless is not None and unless():
                    before.restore_modes()
                else:
                    before.restore()
                raise

    def mass(self, part: Part, examples: int | None) -> float:
        """Weight of ``part`` in means: its number of examples, or what the user's ``weight`` says."""
        if self.weight is None:
            return 1.0 if examples is None else float(examples)
        mass = float(self.weight(*part))
        if not 0.0 <= mass < float("inf"):
            raise ValueError(f"weight must return a non-negative, finite number, got {mass}.")
        return mass

    def _run(
        self,
        group: Examples,
        wanted: Sequence[int] | None,
        *,
        first: bool,
        again: bool = True,
        last: bool = False,
    ) -> Pass:
        gradients, losses = Average(), Average()
        aux: list[Any] = []
        with self._buffer_policy(first), self.buffers.writes_noticed():
            for part, examples in group.own(again=again) if first else group.copies(last=last):
                mass = self.mass(part, examples)
                if mass == 0.0:
                    continue
                with fresh_caches():
                    with self._touching(part) if first else nullcontext():
                        value, extra = self.evaluate(part, examples, mass)
                    if torch.is_grad_enabled():
                        gradients.add(self._differentiate(value, wanted), mass)
                losses.add([value.detach()], mass)
                aux.append(extra)
        (loss,) = losses.result() or [None]
        if loss is None:
            raise ValueError("a group must hold at least one example of positive weight, got none.")
        with torch.no_grad():
            plain = gradients.result()
            connected = any(g is not None for g in plain)
            found = self._with_l2(plain, wanted)
            return Pass(self._with_penalty(loss), aux, found, mass=losses.weight, connected=connected)

    def evaluate(self, part: Part, examples: int | None, mass: float) -> tuple[Tensor, Any]:
        """Value and aux of one part, checked; the mean of one value per example."""
        returned = self.loss(*part)
        value, aux = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(value, Tensor):
            raise TypeError(f"loss must return a tensor or (tensor, aux), got {type(value).__name__}.")
        if value.dim() == 0:
            if self.reduction == "sum":
                require_number(examples, self.weight)
                value = value / mass
            return value, detach(aux)
        if value.dim() > 1 or examples not in (None, len(value)):
            raise ValueError(
                f"loss must return a scalar or one value per example, shape ({examples or 'examples'},), "
                f"got shape {tuple(value.shape)}."
            )
        return value.mean(), detach(aux)

    def _touching(self, part: Part) -> AbstractContextManager[object]:
        return require_touched(part, self.loss, self.asked) if self.cuts else nullcontext()

    def asked(self, *part: Any) -> Any:
        """The loss, run once more: generators and buffers are as if it had not."""
        draws = RandomState.capture(self.devices)
        with self.buffers.kept():
            returned = self.loss(*part)
        draws.restore()
        return returned

    def _differentiate(self, value: Tensor, wanted: Sequence[int] | None) -> Gradients:
        """Gradients of the scaled ``value``; ``None`` where not ``wanted`` or not used."""
        if not value.requires_grad:
            raise ValueError("loss must depend on the params, got a value that requires no gradient.")
        if self.others is not None:
            self.others.note(value)
        scaled = value if self.scale == 1.0 else value * self.scale
        if wanted is None:
            found = torch.autograd.grad(scaled, self.params, allow_unused=True)
            return [None if g is None else working(g) for g in found]
        some = torch.autograd.grad(scaled, [self.params[i] for i in wanted], allow_unused=True)
        gradients: Gradients = [None] * len(self.params)
        for i, g in zip(wanted, some, strict=True):
            gradients[i] = None if g is None else working(g)
        return gradients

    def _with_l2(self, gradients: Gradients, wanted: Sequence[int] | None) -> Gradients:
        if self.l2 == 0.0 or not gradients:
            return gradients
        factor = self.l2 * self.scale
        for i in range(len(self.params)) if wanted is None else wanted:
            penalty, g = working(self.params[i].detach()) * factor, gradients[i]
            gradients[i] = penalty if g is None else penalty + g
        return gradients

    def _with_penalty(self, value: Tensor) -> Tensor:
        return value + 0.5 * self.l2 * l2_norm(self.params).square() if self.l2 > 0 else value

    def moves_buffers(self, first: bool) -> bool:
        """Whether a pass moves running statistics, if it is the ``first`` over its examples or not."""
        return self.bn_stats == "both" or (self.bn_stats == "first" and first)

    def _buffer_policy(self, first: bool) -> AbstractContextManager[object]:
        return nullcontext() if self.moves_buffers(first) else self.buffers.kept()


def require_number(examples: int | None, weight: Weight | None) -> None:
    """Refuses a sum over examples whose number nobody knows."""
    if examples is None and weight is None:
        raise ValueError(
            "reduction='sum' must be given a batch whose tensors have one row per example, or weight=, "
            "got neither."
        )


def unscaled(gradients: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Gradients of the objective itself, from those of the scaled one."""
    if scale == 1.0 or not gradients:
        return list(gradients)
    if any(g.is_sparse for g in gradients):
        return [g / scale for g in gradients]
    return list(torch._foreach_div(list(gradients), scale))
