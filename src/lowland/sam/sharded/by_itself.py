"""The look at the groups of a rank, each of which climbs by itself: no weight is moved, so no shard is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.batched.evaluator import Evaluator
from lowland.sam.batched.look import ManyGroups
from lowland.sam.linearized import Linearized
from lowland.sam.looks.look import Pass
from lowland.sam.looks.penalized import Penalized
from lowland.sam.sharded.gathering import Gathering, OnRank
from lowland.sam.sharded.sharded import Sharded
from lowland.sam.vectors import One, Shown
from lowland.sam.vectors.many import Many
from lowland.sam.vectors.per_group import PerGroup

Added = Callable[[Tensor, int], Tensor]
"""What becomes of the gradient of the i-th parameter before FSDP has it."""


@dataclass(frozen=True, kw_only=True)
class Depositing(Evaluator):
    """Passes whose last ends in ``backward()``, so that FSDP reduces the gradient unit by unit.

    Attributes:
        sharded: The model.
        added: What becomes of each gradient on the way.
    """

    sharded: Sharded
    added: list[Added]

    def _by_params(
        self,
        linearized: Linearized | None,
        weighted: Tensor,
        over: Tensor,  # noqa: ARG002 - of halves only
    ) -> Sequence[Tensor | None]:
        assert linearized is None
        params = self.objective.params
        with ExitStack() as hooks:
            for i, p in enumerate(params):
                for added in self.added:
                    handle = p.register_hook(partial(_applied, added, i))  # type: ignore[no-untyped-call]
                    hooks.callback(handle.remove)
            self.sharded.deposit(weighted)
        return [None] * len(params)


def _applied(added: Added, i: int, gradient: Tensor) -> Tensor:
    return added(gradient, i)


@dataclass(kw_only=True)
class ByThemselves(ManyGroups):
    """Groups of a rank that have the same shapes.

    Attributes:
        sharded: The model.
        whole: What the masses of all groups of the rank add up to, over what their mean is multiplied with.
    """

    sharded: Sharded
    whole: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._gathering: Gathering = self.sharded.gathering
        self.added: list[Added] = []
        plain = self._evaluator
        kept = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        self._evaluator = Depositing(**kept | {"frugal": True}, sharded=self.sharded, added=self.added)

    def slope(self, e: Many | None, *, first: bool = False) -> Pass:
        """The gradient of each group at ``w + e``, which nobody reduces."""
        with self.sharded.units.reducing(False):
            return super().slope(e, first=first)

    def mean(self, e: Many | None, *, first: bool = False) -> Pass:
        """The mean gradient of the groups at ``w + e``, which goes to FSDP; where measured, once more."""
        if not self.objective.measure:
            return replace(super().mean(e, first=first), connected=self.sharded.any_found())
        with self.sharded.units.reducing(False):
            seen = self._recorded(e, self._all, None, first=first)
        self.world.again()
        self._evaluator.summed(self.batch, self._share, self._moves(e), spend=False)
        return replace(seen, mean=One([None] * len(self._all)))

    @property
    def _share(self) -> Float[Tensor, " groups"]:
        return (self.masses / self.whole).to(self.objective.params[0].device)

    def _many(self, each: Sequence[PerGroup], at: Shown | None = None, *, used_up: bool = False) -> Many:
        return OnRank(each, self.batch.groups, at, used_up=used_up, gathering=self._gathering)

    def _not_finite(self, found: Many) -> Many:
        """Those groups do not climb, and their gradient is returned as it is: all ranks make both passes."""
        most = max(torch.finfo(torch.promote_types(t.w.dtype, torch.float32)).max for t in found.each)
        finite = found.norm() <= most
        norm = torch.where(finite, found.norm(), torch.zeros_like(found.norm()))
        return OnRank(
            *([t.only(finite) for t in found.each], found.groups, found.at, norm),
            gathering=self._gathering,
        )

    def _held(self, i: int) -> AbstractContextManager[object]:
        return self._gathering.holding(self.objective.params[i])

    def _realised(self, e: Many) -> tuple[Tensor, Tensor]:
        with self._gathering.one_unit():
            return super()._realised(e)


class PenalizedByThemselves(Penalized):
    r"""The same with :math:`\frac\lambda2 \|w\|_2^2`: its gradient at w is added to the shards at the end.

    Args:
        look: The look at the loss.
        l2: :math:`\lambda`.
    """

    _look: ByThemselves

    def slope(self, e: Any, *, first: bool = False) -> Pass:
        """The gradient of each group at ``w + e``."""
        seen = self._look.slope(e, first=first)
        assert isinstance(seen.gradient, Many)
        wanted = self._look.how.radii.wanted
        used = range(len(seen.gradient.each)) if wanted is None else wanted
        if any(seen.gradient.each[i].absent for i in used):
            raise ValueError(
                "loss must use all trained parameters where the model is sharded and l2 is positive, "
                "got one that it does not."
            )
        return self._penalized(self._look.weights(e), seen)

    def mean(self, e: Many | None, *, first: bool = False) -> Pass:
        """The mean gradient of the groups at ``w + e``."""
        with self._of_the_move(e):
            seen = self._look.mean(e, first=first)
        if not (first or self.objective.measure):
            return seen
        return replace(self._penalized(self._look.weights(e), replace(seen, mean=None)), mean=seen.mean)

    @contextmanager
    def _of_the_move(self, e: Many | None) -> Iterator[None]:
        """A block in which what the term has of the perturbations is added to the gradients."""
        if e is None:
            yield
            return
        look, factor = self._look, self._l2 * self.objective.scale
        e.kept = True
        moves = look.everywhere(e).each

        def with_move(gradient: Tensor, i: int) -> Tensor:
            found = moves[i].summed(look._share)
            return gradient if found is None else gradient + (factor * found).to(gradient)

        look.added.append(with_move)
        try:
            yield
        finally:
            look.added.remove(with_move)
