"""One pass of a loss over all groups at once."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from lowland.sam.average import Gradients
from lowland.sam.batched import rules as _rules  # noqa: F401 - registers them
from lowland.sam.batched.cost import Product
from lowland.sam.batched.outside import Outside
from lowland.sam.batched.per_group import PerGroup
from lowland.sam.batched.precision import autocast_off
from lowland.sam.batched.refused import Unbatchable, require_known
from lowland.sam.batched.stacked import Stacked
from lowland.sam.batched.tape import PastTheTape, Tape
from lowland.sam.batched.weights import Weight
from lowland.sam.caches import fresh_caches
from lowland.sam.containers import holds_same, mapped, rebuilt, tensors_of, version_of
from lowland.sam.passes import Passes
from lowland.sam.perturb import seen_as_perturbed
from lowland.sam.precision import working
from lowland.sam.touched import require_touched


@dataclass(frozen=True)
class GroupsPass:
    """Objectives, aux and gradients of all groups at the weights as they stood.

    Attributes:
        losses: The objective of each group, without the scale and without an l2 term.
        aux: What the loss returned beside its value, group by group.
        gradient: The gradient of each group, without the scale; empty unless recorded.
        total: Gradients of the scaled objectives' weighted sum; empty if recorded.
        products: Uses of weights as matrices; empty unless recorded.
        calls: Number of operations of the loss.
        changed: Identities of the buffers that are known to change.
        connected: Whether any parameter got a gradient.
    """

    losses: Float[Tensor, " groups"]
    aux: list[Any]
    gradient: list[PerGroup]
    total: Gradients
    products: list[Product] = field(default_factory=list)
    calls: int = 0
    changed: set[int] = field(default_factory=set)
    connected: bool = True


@dataclass(frozen=True)
class GroupsPasses:
    """The loss of ``passes``, for several groups at once.

    Attributes:
        passes: The loss, and the policy for buffers.
        forms: Whether recorded gradients are to be formed.
        planned_groups: Number of groups to choose forms for, where it is not that of the batch.
        probes: Whether the pass is to find out what cannot be run at once.
        cuts: Whether to ask if the loss touches its arguments.
        results: What the operations of the loss returned, in all passes.
    """

    passes: Passes
    forms: bool
    planned_groups: int | None = None
    probes: bool = False
    cuts: bool = False
    results: list[weakref.ref[Tensor]] = field(default_factory=list)

    @torch.enable_grad()
    def recorded(
        self,
        batch: Stacked,
        wanted: Sequence[int],
        e: Sequence[PerGroup | None] | None = None,
        *,
        first: bool = False,
    ) -> GroupsPass:
        """The pass at ``w + e_S``, with the gradients of the parameters ``wanted`` group by group."""
        weights = self._weights(batch.groups, e)
        for i in wanted:
            weights[i].gradient = PerGroup(self.passes.params[i])
        with self._forward(batch, weights, first=first) as (losses, aux, tape):
            self._require_gradient(losses)
            self._record(losses, tape, weights, wanted)
        gradient = [w.gradient or PerGroup(w.param) for w in weights]
        if self.passes.scale != 1.0:
            down = torch.full((batch.groups,), 1.0 / self.passes.scale, dtype=torch.float64, device="cpu")
            gradient = [g if g.absent else g.scaled(down) for g in gradient]
        products = [product for w in weights for product in w.products]
        connected = any(not g.absent for g in gradient)
        return GroupsPass(
            losses.detach(), aux, gradient, [], products, tape.calls, tape.outside.changed, connected
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
    ) -> GroupsPass:
        """The pass at ``w + e_S``, with the gradient of the groups' weighted sum.

        With ``spend`` the perturbation ``e`` is not needed afterwards.
        """
        weights = self._weights(batch.groups, e, spend=spend)
        with self._forward(batch, weights, first=first) as (losses, aux, _):
            self._require_gradient(losses)
            weighted = (losses * share.to(losses)).sum() * self.passes.scale
            with autocast_off(losses):
                found = torch.autograd.grad(weighted, self.passes.params, allow_unused=True)
        connected = any(g is not None for g in found)
        total: Gradients = [None if g is None else working(g) for g in found]
        return GroupsPass(losses.detach(), aux, [], total, connected=connected)

    def values(self, batch: Stacked, e: Sequence[PerGroup | None] | None = None) -> GroupsPass:
        """The objectives at ``w + e_S``, without a gradient."""
        weights = self._weights(batch.groups, e)
        with torch.no_grad(), self._forward(batch, weights, first=True) as (losses, aux, _):
            return GroupsPass(losses, aux, [], [])

    def _weights(
        self, groups: int, e: Sequence[PerGroup | None] | None, *, spend: bool = False
    ) -> list[Weight]:
        moves = [None] * len(self.passes.params) if e is None else e
        return [
            Weight(
                p,
                groups,
                move,
                form=self.forms,
                planned_groups=self.planned_groups or groups,
                spend=spend,
            )
            for p, move in zip(self.passes.params, moves, strict=True)
        ]

    def _record(self, losses: Tensor, tape: Tape, weights: list[Weight], wanted: Sequence[int]) -> None:
        """Fills the gradients of the ``wanted`` weights, group by group."""
        copies = [(w, leaf) for w in weights if (leaf := w.leaf()) is not None]
        live = [self.passes.params[i] for i in wanted]
        ours = [t for t in (tape.anchor, *(leaf for _, leaf in copies)) if t is not None]
        if self.passes.others is not None:
            self.passes.others.note(losses, ours)
        scaled = losses.sum() if self.passes.scale == 1.0 else losses.sum() * self.passes.scale
        inputs = [*ours, *live]
        with autocast_off(losses):
            found = torch.autograd.grad(scaled, inputs, allow_unused=True)
        if any(g is not None for g in found[1 + len(copies) :]):
            raise Unbatchable("a parameter inside a custom autograd.Function, out of sight")
        for (weight, _), g in zip(copies, found[1:], strict=False):
            if g is not None and weight.gradient is not None:
                weight.gradient.add_dense(g)
        for weight in weights:
            if weight.gradient is not None:
                weight.gradient.tidy()

    @contextmanager
    def _forward(
        self, batch: Stacked, weights: list[Weight], *, first: bool
    ) -> Iterator[tuple[Tensor, list[Any], Tape]]:
        """The losses of all groups; buffers are put back, if they are, at the end of the block.

        Not before its backward pass: putting a buffer back would count as a change of what that needs.
        """
        moves_stats = self.passes.moves_buffers(first)
        params, buffers = self.passes.params, self.passes.buffers
        sharing = [w.param for w in weights if w.takes_part]
        outside = Outside(sharing, batch.groups, buffers.ids, moves_stats=moves_stats)
        tape = Tape(weights, batch.groups, outside, self.results)
        structure: list[Any] = []

        def of_one_group(*leaves: Tensor) -> tuple[Tensor, ...]:
            part = batch.rebuild(leaves)
            given = mapped(lambda t: t, part)
            if self.cuts and first:
                tape.touches = require_touched(part, self.passes.loss, self.passes.asked)
            tape.begin()
            outside.begin(tensors_of(part))
            mass = self.passes.mass(part, batch.examples) if self.passes.reduction == "sum" else 1.0
            with tape, PastTheTape(params, tape) if self.probes else nullcontext():
                value, aux = self.passes.evaluate(part, batch.examples, mass)
            if not holds_same(part, given):
                raise Unbatchable("a change of the containers of the batch")
            structure[:] = [aux]
            return value, *tensors_of(aux)

        moved = any(w.move is not None for w in weights)
        with (
            nullcontext() if moves_stats else buffers.kept(),
            seen_as_perturbed() if moved else nullcontext(),
            fresh_caches(),
        ):
            marks, writes = buffers.marks(), buffers.num_writes
            versions = [version_of(t) for t in batch.leaves]
            with buffers.writes_noticed():
                losses, *aux = _mapped(tape, of_one_group, batch.leaves)
            if tape.touches is not None:
                tape.touches.require_any(batch.rebuild([leaf[0] for leaf in batch.leaves]))
            for weight in weights:
                weight.require_unchanged()
            if [version_of(t) for t in batch.leaves] != versions:
                raise Unbatchable("an operation that changes the batch")
            if buffers.num_writes > writes:
                raise Unbatchable("a change of a parameter that is not trained")
            if moves_stats and not self.probes:
                require_known(buffers.moved_since(marks), outside.changed)
            outside.move_statistics()
            columns = zip(*(t.detach().unbind() for t in aux), strict=True)
            each = [rebuilt(structure[0], column) for column in columns] if aux else structure * batch.groups
            yield losses, each, tape

    @staticmethod
    def _require_gradient(losses: Tensor) -> None:
        if not losses.requires_grad:
            raise ValueError("loss must depend on the params, got a value that requires no gradient.")


def _mapped(tape: Tape, function: Any, leaves: list[Tensor]) -> Any:
    """``function`` of each group, with what torch cannot run for all at once named."""
    with warnings.catch_warnings(), _uncompiled():
        warnings.filterwarnings("ignore", "There is a performance drop")
        try:
            found = vmap(function, randomness="different")(*leaves)
        except (Unbatchable, torch.OutOfMemoryError):
            raise
        except (RuntimeError, NotImplementedError) as error:
            if tape.passed_by:
                raise Unbatchable(_SCRIPTED) from error
            if error is tape.failed:
                raise Unbatchable(_what(tape, error)) from error
            if any(word in str(error) for word in _NOT_AT_ONCE):
                if error.__context__ is not None:  # vmap was left in disorder by what came first
                    raise error.__context__ from None
                raise Unbatchable(_what(tape, error)) from error
            raise  # the loss's own
    if tape.passed_by:
        raise Unbatchable(_SCRIPTED)
    return found


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What the loss has compiled is run as it was written: the compiler does not see through a tape."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


_SCRIPTED = "a parameter in scripted or traced code, out of sight"

_NOT_AT_ONCE = ("vmap", "functorch", "saved tensor hooks")
"""What torch says where it cannot run something for all groups, wherever it says it."""


def _what(tape: Tape, error: Exception) -> str:
    """The operation that failed, and why."""
    name = getattr(tape.running, "__name__", None) or str(tape.running)
    reason = str(error).split("\n")[0].strip()
    return f"{name} ({reason})"
