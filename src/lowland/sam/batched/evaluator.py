"""One pass of a loss over all groups at once."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from lowland.sam.batched import rules as _rules  # noqa: F401 - registers them
from lowland.sam.batched.cause import cause_of
from lowland.sam.batched.cost import Product
from lowland.sam.batched.outside import Outside
from lowland.sam.batched.past_the_tape import PastTheTape
from lowland.sam.batched.precision import autocast_off
from lowland.sam.batched.refused import require_known
from lowland.sam.batched.tape import Tape
from lowland.sam.batched.weights import Weight
from lowland.sam.caches import fresh_caches
from lowland.sam.containers import holds_same, mapped, rebuilt, tensors_of, version_of
from lowland.sam.linearized import Linearized, evaluated, gradients
from lowland.sam.looks.look import Pass
from lowland.sam.noise import Noise
from lowland.sam.objective import Objective
from lowland.sam.perturb import seen_as_perturbed
from lowland.sam.precision import is_half
from lowland.sam.said import line_that_raised
from lowland.sam.stacked import Stacked
from lowland.sam.touched import require_touched
from lowland.sam.unbatchable import Unbatchable
from lowland.sam.vectors import One
from lowland.sam.vectors.per_group import PerGroup


@dataclass(frozen=True)
class Recorded:
    """What a pass over all groups recorded, where the weights stood.

    Attributes:
        losses: The objective of each group, without the scale.
        aux: What the loss returned beside its value, group by group.
        gradient: The gradient of each group, times the scale.
        products: Uses of weights as matrices.
        calls: Number of operations of the loss.
        changed: Identities of the buffers that are known to change.
        saved_again: Bytes of the most that a checkpoint saved when it ran a part of the loss again.
    """

    losses: Float[Tensor, " groups"]
    aux: list[Any]
    gradient: list[PerGroup]
    products: list[Product]
    calls: int
    changed: set[int]
    saved_again: int

    @property
    def connected(self) -> bool:
        """Whether any parameter got a gradient."""
        return any(not g.absent for g in self.gradient)


@dataclass(frozen=True)
class Evaluator:
    """A loss, evaluated for several groups at once.

    Attributes:
        objective: The loss, and the policy for buffers.
        forms: Whether recorded gradients are to be formed.
        frugal: Whether they are formed only where that takes less memory.
        planned_groups: Number of groups to choose forms for, where it is not that of the batch.
        probes: Whether the pass is to find out what cannot be run at once.
        results: What the operations of the loss returned, in all passes.
        autocast: A block in which the loss is run as the caller would have it.
        follow: Whether running statistics may move: they do so in the order of the groups.
        noise: Randomness of the rounding to weights of half precision.
    """

    objective: Objective
    forms: bool
    frugal: bool = False
    planned_groups: int | None = None
    probes: bool = False
    results: list[weakref.ref[Tensor]] = field(default_factory=list)
    autocast: AbstractContextManager[object] = field(default_factory=nullcontext)
    follow: bool = True
    noise: Noise | None = None

    @torch.enable_grad()
    def recorded(
        self,
        batch: Stacked,
        wanted: Sequence[int],
        e: Sequence[PerGroup | None] | None = None,
        *,
        first: bool = False,
        linearized: Linearized | None = None,
    ) -> Recorded:
        """The pass at ``w + e_S``, with the gradients of the parameters ``wanted`` group by group."""
        weights = self._weights(batch.groups, e)
        for i in wanted:
            weights[i].gradient = PerGroup(self.objective.params[i])
        with self._forward(batch, weights, linearized, first=first) as (losses, aux, tape):
            self.objective.require_gradient(losses)
            self._record(losses, tape, weights, wanted, linearized)
        gradient = [w.gradient or PerGroup(w.param) for w in weights]
        products = [product for w in weights for product in w.products]
        return Recorded(
            *(losses.detach(), aux, gradient, products, tape.calls, tape.outside.changed, tape.saved_again)
        )

    @torch.enable_grad()
    def summed(
        self,
        batch: Stacked,
        share: Float[Tensor, " groups"],
        e: Sequence[PerGroup | None] | None,
        *,
        first: bool = False,
        spend: bool = False,
        linearized: Linearized | None = None,
    ) -> Pass:
        """The pass at ``w + e_S``, with the gradient of the groups' weighted sum.

        With ``spend`` the perturbation ``e`` is not needed afterwards.
        """
        weights = self._weights(batch.groups, e, spend=spend)
        with self._forward(batch, weights, linearized, first=first) as (losses, aux, _):
            self.objective.require_gradient(losses)
            weighted = self.objective.scaled((losses * share.to(losses)).sum())
            with autocast_off(losses):
                found = self._by_params(linearized, weighted, share * self.objective.scale)
        return Pass(losses.detach(), aux, mean=One(found), connected=any(g is not None for g in found))

    def _by_params(
        self, linearized: Linearized | None, weighted: Tensor, over: Float[Tensor, " groups"]
    ) -> Sequence[Tensor | None]:
        """Gradients of the ``weighted`` sum by the parameters."""
        return gradients(linearized, weighted, self.objective.params, over)

    def values(
        self,
        batch: Stacked,
        e: Sequence[PerGroup | None] | None = None,
        *,
        first: bool = False,
        linearized: Linearized | None = None,
    ) -> Pass:
        """The objectives at ``w + e_S``, without a gradient by the parameters."""
        weights = self._weights(batch.groups, e)
        with torch.no_grad(), self._forward(batch, weights, linearized, first=first) as (losses, aux, _):
            if linearized is not None:
                linearized.keep(losses)
            return Pass(losses.detach(), aux, connected=False)

    def _weights(
        self, groups: int, e: Sequence[PerGroup | None] | None, *, spend: bool = False
    ) -> list[Weight]:
        moves = [None] * len(self.objective.params) if e is None else e
        return [
            Weight(
                p,
                groups,
                move,
                form=self.forms,
                planned_groups=self.planned_groups or groups,
                frugal=self.frugal,
                spend=spend,
                noise=self.noise.of(2 * i) if self.noise is not None and is_half(p) else None,
            )
            for i, (p, move) in enumerate(zip(self.objective.params, moves, strict=True))
        ]

    def _record(
        self,
        losses: Tensor,
        tape: Tape,
        weights: list[Weight],
        wanted: Sequence[int],
        linearized: Linearized | None,
    ) -> None:
        """Fills the gradients of the ``wanted`` weights, group by group."""
        copies = [(w, leaf) for w in weights if (leaf := w.leaf()) is not None]
        live = [self.objective.params[i] for i in wanted]
        ours = [t for t in (tape.anchor, *(leaf for _, leaf in copies)) if t is not None]
        if self.objective.others is not None:
            self.objective.others.note(losses, ours)
        scaled = self.objective.scaled(losses.sum())
        inputs = [*ours, *live]
        with autocast_off(losses):
            found = gradients(linearized, scaled, inputs, self.objective.scale)
        if any(g is not None for g in found[1 + len(copies) :]):
            raise Unbatchable("a parameter inside a custom autograd.Function, out of sight")
        for (weight, _), g in zip(copies, found[1:], strict=False):
            if g is not None and weight.gradient is not None:
                weight.gradient.add_dense(g)
        with torch.no_grad():
            for weight in weights:
                if weight.gradient is not None:
                    weight.gradient.tidy()

    @contextmanager
    def _forward(
        self, batch: Stacked, weights: list[Weight], linearized: Linearized | None, *, first: bool
    ) -> Iterator[tuple[Tensor, list[Any], Tape]]:
        """The losses of all groups; buffers are put back, if they are, at the end of the block.

        Not before its backward pass: putting a buffer back would count as a change of what that needs.
        """
        moves_stats = self.objective.moves_buffers(first)
        params, buffers = self.objective.params, self.objective.buffers
        sharing = [w.param for w in weights if w.takes_part]
        outside = Outside(sharing, batch.groups, buffers.ids, moves_stats=moves_stats)
        tape = Tape(weights, batch.groups, outside, self.results)
        structure: list[Any] = []
        kept = [] if linearized is None else linearized.leaves

        def of_one_group(*leaves: Tensor) -> tuple[Tensor, ...]:
            part, of_outputs = batch.rebuild(leaves), leaves[len(batch.leaves) :]
            given = mapped(lambda t: t, part)
            if self.objective.cuts and first:
                tape.touches = require_touched(part, self.objective.loss, self.objective.asked)
            tape.begin()
            outside.begin(tensors_of(part))
            mass = self.objective.mass(part, batch.examples) if self.objective.reduction == "sum" else 1.0
            with tape, PastTheTape(params, tape) if self.probes else nullcontext():
                value, aux = evaluated(
                    *(self.objective, linearized, part, batch.examples, mass),
                    through=tape.beside,
                    leaves=of_outputs,
                )
            if not holds_same(part, given):
                raise Unbatchable("a change of the containers of the batch")
            structure[:] = [aux]
            return value, *tensors_of(aux)

        moved = any(w.move is not None for w in weights)
        with (
            nullcontext() if moves_stats else buffers.kept(),
            seen_as_perturbed([*params, *self.objective.names_too]) if moved else nullcontext(),
            fresh_caches(),
        ):
            marks, writes = buffers.marks(), buffers.num_writes
            versions = [version_of(t) for t in batch.leaves]
            with buffers.writes_noticed(), self.autocast:
                losses, *aux = _mapped(tape, of_one_group, [*batch.leaves, *kept])
            if tape.touches is not None:
                tape.touches.require_any(batch.rebuild([leaf[0] for leaf in batch.leaves]))
            _require_unchanged(batch, versions, weights)
            if buffers.num_writes > writes:
                raise Unbatchable("a change of a parameter that is not trained")
            if moves_stats and not self.probes:
                require_known(buffers.moved_since(marks), outside.changed)
            if outside.moves_in_order and not self.follow:
                raise Unbatchable(_OUT_OF_ORDER)
            outside.move_statistics()
            columns = zip(*(t.detach().unbind() for t in aux), strict=True)
            each = [rebuilt(structure[0], column) for column in columns] if aux else structure * batch.groups
            yield losses, each, tape


def _require_unchanged(batch: Stacked, versions: list[int], weights: list[Weight]) -> None:
    """Refuses a loss that writes to its arguments, or to parameters."""
    for weight in weights:
        weight.require_unchanged()
    if [version_of(t) for t in batch.leaves] != versions:
        raise Unbatchable("an operation that changes the batch")


def _mapped(tape: Tape, function: Any, leaves: list[Tensor]) -> Any:
    """``function`` of each group, with what torch cannot run for all at once named."""
    with warnings.catch_warnings(), _uncompiled():
        warnings.filterwarnings("ignore", "There is a performance drop")
        try:
            found = vmap(function, randomness="different")(*leaves)
        except Unbatchable as error:
            raise _refusal(error, None) from None
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            if tape.passed_by:
                raise Unbatchable(_SCRIPTED) from error
            operation = tape.failed[1] if tape.failed is not None and tape.failed[0] is error else None
            if operation is None and not any(words in str(error) for words in _NOT_AT_ONCE):
                raise  # the loss's own
            if operation is None and error.__context__ is not None:  # vmap was left in disorder by that
                raise error.__context__ from None
            raise _refusal(error, operation) from error
        except Exception as error:
            if tape.failed is not None:  # it may be what the loss has made of that
                raise _refusal(*tape.failed) from error
            raise
        finally:
            tape.ended = True
    if tape.passed_by:
        raise Unbatchable(_SCRIPTED)
    if tape.failed is not None:  # and the loss has caught it
        raise _refusal(*tape.failed)
    return found


def _refusal(error: Exception, operation: Callable[..., Any] | None) -> Unbatchable:
    refusal = error if isinstance(error, Unbatchable) else cause_of(error, operation)
    refusal.where = refusal.where or line_that_raised(error)
    return refusal


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What the loss has compiled is run as it was written: the compiler does not see through a tape."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


_OUT_OF_ORDER = "control flow that differs between groups, whose running statistics move in their order"

_SCRIPTED = "a parameter in scripted or traced code, out of sight"

_NOT_AT_ONCE = ("vmap", "functorch", "saved tensor hooks", "Batching rule")
"""What torch says where it cannot run something for all groups, wherever it says it."""
