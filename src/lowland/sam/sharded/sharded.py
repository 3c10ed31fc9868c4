"""A sharded model in a call: what its passes see in place of its parameters, and where gradients go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Replicate, Shard

from lowland.sam.average import Gradients
from lowland.sam.deposit import accumulated_hooks_held
from lowland.sam.engine import Plan
from lowland.sam.sharded.fsdp import Units, largest, means
from lowland.sam.sharded.gathering import Gathering
from lowland.sam.sharded.options import check_group
from lowland.sam.sharded.shards import added_over
from lowland.sam.sharded.waiting import Waiting, any_waits


class Sharded:
    """The parameters of a model that ``fully_shard`` has cut.

    With a process group they are this rank's shards, which are moved; without they are the gathered
    parameters, which are whole only while their unit runs, and nothing is moved.

    Args:
        module: The model.
        params: Its parameters that are trained.
        process_group: The processes that climb together, if they do.
        beside: Other modules that the loss may run.

    Attributes:
        units: What is gathered together.
        params: What the passes see.
        names_too: All that the model may hold in their places.
        added: Adds numbers of shards up.
        gathering: Gathers units for what is computed outside of passes.

    Raises:
        ValueError: If it is sharded in a way that this knows nothing of.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Sequence[Tensor],
        process_group: ProcessGroup | None,
        beside: Iterable[nn.Module],
    ) -> None:
        self.units = Units(module, beside)
        self._sharded: list[Any] = list(params)
        check_cut(self.units, self._sharded)
        first = self._sharded[0]
        self._mesh, self._device = first.device_mesh, first.to_local().device
        self._process_group = process_group
        check_group(process_group, self._mesh)
        self.added = added_over(self._mesh, first.placements, self._device)
        self._waiting: Waiting | None = None
        self._look()

    def _look(self) -> None:
        """Finds what stands for the parameters."""
        self.units.put_away()
        known = self.units.gathered()
        pairs = [known[id(p)] for p in self._sharded]
        self._whole = [p for p, _ in pairs]
        self.gathering = Gathering({id(p): unit for p, unit in pairs})
        self.names_too = [*self._sharded, *self._whole]
        own = [p.detach().to_local() for p in self._sharded]
        self.params: list[Tensor] = self._whole if self._process_group is None else own
        self._shards = own

    @property
    def trained(self) -> list[Tensor]:
        """All that is not for others to watch."""
        return [*self.names_too, *(kept.shard for kept in self.units.kept())]

    @contextmanager
    def at_work(self, *, deposits: bool) -> Iterator[None]:
        """The block of a call.

        Args:
            deposits: Whether its gradients go to ``.grad``, or wait where FSDP is told to have them wait.

        Raises:
            ValueError: If gradients wait that the call cannot add to.
        """
        together = self._process_group is not None
        if together and any_waits(self.units):
            raise ValueError(
                "process_group must be None while FSDP keeps gradients that it has not reduced "
                "(set_requires_gradient_sync(False)), got one."
            )
        waits = deposits and not together and self.units.waits()
        with ExitStack() as blocks:
            blocks.enter_context(accumulated_hooks_held([kept.shard for kept in self.units.kept()]))
            blocks.enter_context(self.units.hooks_unseen())
            blocks.enter_context(self.units.reducing(not waits))
            self._waiting = Waiting(self.units, aside=waits or not deposits)
            try:
                yield
                self._waiting.keep()
            except BaseException:
                self.units.recover()
                self._waiting.undo()
                raise
            finally:
                self._waiting = None

    def deposit(self, value: Tensor) -> None:
        """Has FSDP reduce the gradient of ``value``, or keep it, unit by unit; nobody else gets one."""
        torch.autograd.backward(value, inputs=self._whole)

    def any_found(self) -> bool:
        """Whether any parameter has got a gradient."""
        assert self._waiting is not None
        return self._waiting.any_found()

    def reduced(self, value: Tensor) -> Gradients:
        """This rank's shards of the ranks' mean gradient of ``value``."""
        self.deposit(value)
        assert self._waiting is not None
        found = self._waiting.found()
        gradients = [found[id(p)] for p in self._sharded]
        for p in self._sharded:
            p.grad = None
        return [None if g is None else _local(g) for g in gradients]

    def gradients(self, own: Gradients, l2: float) -> Gradients:
        """The gradients of a call, as pieces of the whole.

        Args:
            own: This rank's shards, where a look returned them.
            l2: What the weights themselves are to be added with.
        """
        if self._process_group is not None:
            return [None if g is None else self._piece(p, g) for p, g in zip(self._sharded, own, strict=True)]
        assert self._waiting is not None
        found = self._waiting.found()
        gradients = [found[id(p)] for p in self._sharded]
        if l2 == 0.0:
            return gradients
        (l2,) = self.means([l2])  # ranks may scale their losses differently
        terms = [(l2 * w).to(p.dtype) for p, w in zip(self._sharded, self._shards, strict=True)]
        return [
            self._piece(p, term if g is None else _local(g) + term)
            for p, g, term in zip(self._sharded, gradients, terms, strict=True)
        ]

    def planned(self, plan: Plan, *, alike: bool) -> Plan:
        """How the groups of a call are run.

        Raises:
            ValueError: If losses are summed over groups of ranks that differ in size.
        """
        from lowland.sam.sharded.plan import ByThemselvesPlan, TogetherPlan

        given = {name: getattr(plan, name) for name in Plan.__dataclass_fields__}
        if self._process_group is None:
            return ByThemselvesPlan(**given, sharded=self)
        if not alike and plan.objective.reduction == "sum":
            raise ValueError(
                "reduction must be 'mean' where the ranks of process_group have batches of different sizes, "
                "got 'sum'."
            )
        return TogetherPlan(**given, sharded=self, alike=alike)

    def means(self, numbers: Sequence[float]) -> list[float]:
        """The means over all ranks of the numbers of each."""
        return means(self._mesh, numbers, self._device)

    def largest(self, number: int) -> int:
        """The largest of the numbers of all ranks."""
        return largest(self._mesh, number, self._device)

    def _piece(self, p: Any, own: Tensor) -> Tensor:
        return DTensor.from_local(
            own, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )


def check_cut(units: Units, params: Sequence[Any]) -> None:
    """Refuses models that are not, or not only, cut by ``fully_shard`` on one mesh.

    Raises:
        ValueError: If it is so.
    """
    kept = units.kept()
    known = {id(one.shard) for one in kept}
    others = sum(id(p) not in known for p in params)
    if others:
        raise ValueError(
            "module must have all its trained parameters sharded by fully_shard, as its root does it, "
            f"got {others} that are not."
        )
    if len(known) < len(kept):
        raise ValueError(
            "module must have each parameter in one unit of fully_shard, got one that several units share: "
            "give fully_shard those that share it as a list."
        )
    if len({p.device_mesh for p in params}) > 1:
        raise ValueError("module must be sharded on one mesh, got parameters on several.")
    kinds = {type(placement) for p in params for placement in p.placements}
    if kinds - {Shard, Replicate} or any(one.is_parallel for one in kept):
        raise ValueError(
            "module must be sharded by fully_shard alone, got one that is tensor parallel besides."
        )
    if any(one.is_offloaded for one in kept):
        raise ValueError("fully_shard must have no CPUOffloadPolicy here, got one.")
    if units.reduces_in_part():
        raise ValueError("set_requires_all_reduce must be True here, got False: gradients would be lost.")


def _local(gradient: Any) -> Tensor:
    found: Tensor = gradient.to_local()
    return found
