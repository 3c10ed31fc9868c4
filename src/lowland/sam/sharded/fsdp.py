"""What ``fully_shard`` knows of a model: the one place that uses private names of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState
from torch.distributed.fsdp._fully_shard._fsdp_param_group import RegisterPostBackwardFunction

from lowland.sam.batched.level import unwrapped
from lowland.sam.containers import mapped, tensors_of
from lowland.sam.private import is_in_vmap, unseen_by_modes

_NEEDED = "fsdp_params", "reduce_grads", "all_reduce_grads", "offload_policy", "lazy_init", "_training_state"


class Kept:
    """What FSDP keeps of a parameter.

    Args:
        of: That.
    """

    def __init__(self, of: Any) -> None:
        self._of = of

    @property
    def shard(self) -> Any:
        """The sharded parameter, a DTensor."""
        return self._of.sharded_param

    @property
    def whole(self) -> Tensor | None:
        """The gathered parameter, whose memory comes and goes; ``None`` before the first gathering."""
        found: Tensor | None = getattr(self._of, "_unsharded_param", None)
        return found

    @property
    def is_parallel(self) -> bool:
        """Whether it is cut by tensor parallelism, too."""
        return bool(self._of.is_dtensor)

    @property
    def is_offloaded(self) -> bool:
        """Whether its shard waits on the CPU."""
        return bool(self._of.offload_to_cpu)

    @property
    def pending(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients that are not reduced yet: of the gathered parameter, and in the type of the reduction."""
        return None if self.whole is None else self.whole.grad, self._of.unsharded_accumulated_grad

    @pending.setter
    def pending(self, gradients: tuple[Tensor | None, Tensor | None]) -> None:
        if self.whole is not None:
            self.whole.grad = gradients[0]
        self._of.unsharded_accumulated_grad = gradients[1]


class Units:
    """The parts of a model whose parameters are gathered and freed together.

    Args:
        module: The model.
        beside: Others that may run in the same call, as teachers do.

    Attributes:
        parts: A module of each unit of the model, in its order.

    Raises:
        ValueError: If this torch keeps them in another way.
    """

    def __init__(self, module: nn.Module, beside: Iterable[nn.Module] = ()) -> None:
        own = _sharded_modules([module])
        self.parts: list[Any] = _one_of_each_unit(own)
        self._modules = _sharded_modules([module, *beside])
        self._others = _one_of_each_unit(self._modules[len(own) :])
        missing = [name for name in _NEEDED for g in self._groups() if not hasattr(g, name)]
        missing += [] if hasattr(FSDPModule, "reset_iter_state") else ["reset_iter_state"]
        if missing:
            raise ValueError(f"torch must have the fully_shard of 2.13, got one without {missing[0]}.")
        for group in self._groups():
            group.lazy_init()  # loaders may have put other parameters in the places of those that were cut

    def _groups(self) -> Iterator[Any]:
        for part in self.parts:
            yield from part._get_fsdp_state()._fsdp_param_groups

    def kept(self) -> list[Kept]:
        """What FSDP keeps of each parameter."""
        return [kept for part in self.parts for kept in _kept(part)]

    def gathered(self) -> dict[int, tuple[Tensor, Any]]:
        """For each sharded parameter, by its identity, the gathered one and a module of its unit.

        A gathered parameter stays the same; its memory comes and goes. FSDP makes it when it first gathers a
        unit, and freezes or trains it as the sharded one whenever it does. Both are done here if need be,
        for what runs beside the model too, since they cannot be inside ``vmap``: all ranks must ask together.
        """
        found = {}
        for part in (*self.parts, *self._others):
            if any(kept.whole is None for kept in _kept(part)):
                with held(part):
                    pass
            for kept in _kept(part):
                whole = kept.whole
                assert whole is not None
                if whole.requires_grad != kept.shard.requires_grad:
                    whole.requires_grad_(kept.shard.requires_grad)
                found[id(kept.shard)] = whole, part
        return found

    def reduces_in_part(self) -> bool:
        """Whether replicas are not to be added up."""
        return any(group.reduce_grads and not group.all_reduce_grads for group in self._groups())

    def waits(self) -> bool:
        """Whether gradients are to be accumulated where they are, and not reduced."""
        return not any(group.reduce_grads for group in self._groups())

    def put_away(self) -> None:
        """Frees what is gathered."""
        for part in self.parts:
            part.reshard()

    @contextmanager
    def reducing(self, flag: bool) -> Iterator[None]:
        """A block whose backward passes reduce gradients, or do not."""
        before = [(group, group.reduce_grads, group.all_reduce_grads) for group in self._groups()]
        try:
            for group, *_ in before:
                group.reduce_grads = group.all_reduce_grads = flag
            yield
        finally:
            for group, reduces, all_reduces in before:
                group.reduce_grads, group.all_reduce_grads = reduces, all_reduces

    def recover(self) -> None:
        """Makes the units ready for a forward pass after one that failed half-way."""
        for part in self._modules:
            state = part._get_fsdp_state()
            if state._is_root:
                part.reset_iter_state()
        self.put_away()

    @contextmanager
    def hooks_unseen(self) -> Iterator[None]:
        """A block in which no mode sees how units are gathered, registered and freed around their modules."""
        changed: list[tuple[Any, Any, Any]] = []
        try:
            for part in self._modules:
                for hooks, seen in ((part._forward_pre_hooks, _before), (part._forward_hooks, _after)):
                    for key, hook in [*hooks.items()]:
                        state = _state_of(hook)
                        if state is not None:
                            changed.append((hooks, key, hook))
                            hooks[key] = partial(seen, hook, state)
            yield
        finally:
            for hooks, key, hook in changed:
                hooks[key] = hook


def _kept(part: Any) -> list[Kept]:
    """What is kept of each parameter of a unit."""
    return [Kept(kept) for group in part._get_fsdp_state()._fsdp_param_groups for kept in group.fsdp_params]


def _sharded_modules(roots: Iterable[nn.Module]) -> list[Any]:
    found = {id(m): m for root in roots for m in root.modules() if isinstance(m, FSDPModule)}
    return list(found.values())


def _one_of_each_unit(modules: Sequence[Any]) -> list[Any]:
    """The first module of each unit."""
    found = {id(module._get_fsdp_state()): module for module in reversed(modules)}
    return list(reversed(found.values()))


@contextmanager
def held(part: Any) -> Iterator[None]:
    """A block in which the parameters of a unit are gathered; all ranks must enter it together."""
    part.unshard()
    try:
        yield
    finally:
        part.reshard()


def _state_of(hook: Any) -> Any:
    """The unit that a hook of a module is of; ``None`` if it is not FSDP's."""
    while hook is not None:
        owner = getattr(hook, "__self__", None)
        if type(owner).__module__.startswith("torch.distributed.fsdp"):
            return owner
        hook = getattr(hook, "__wrapped__", None)
    return None


def _after(hook: Callable[..., Any], _: Any, *args: Any) -> Any:
    with unseen_by_modes():
        return hook(*args)


def _before(hook: Callable[..., Any], state: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    groups = state._fsdp_param_groups
    runs = [group._training_state is TrainingState.FORWARD for group in groups]  # a unit of several modules
    with unseen_by_modes():
        found = hook(module, args, kwargs)
        for group, ran in zip(groups, runs, strict=True):
            begins = not ran and group._training_state is TrainingState.FORWARD
            if begins and torch.is_grad_enabled():
                found = _ended(group, found)
        return found


def _ended(group: Any, arguments: Any) -> Any:
    """Inputs whose gradient ends the backward pass of a unit: inside ``vmap`` FSDP sees none that needs one.

    It would then end all units with the pass, until when their gradients and they themselves stay whole.
    """
    inputs = [t for t in tensors_of(arguments) if is_in_vmap(t) and unwrapped(t).requires_grad]
    if not inputs:
        return arguments
    outputs = RegisterPostBackwardFunction.apply(group, *inputs)  # type: ignore[no-untyped-call]
    ended = dict(zip(map(id, inputs), outputs, strict=True))
    return mapped(lambda t: ended.get(id(t), t), arguments)


def largest(mesh: Any, number: int, device: torch.device) -> int:
    """The largest of the numbers of all ranks of a mesh, all of which ask."""
    found = torch.tensor(number, device=device)
    for i in range(mesh.ndim):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=mesh.get_group(i))
    return int(found)


def means(mesh: Any, numbers: Sequence[float], device: torch.device) -> list[float]:
    """The mean of each of the numbers over all ranks of a mesh, all of which ask."""
    found = torch.tensor(numbers, dtype=torch.float64, device=device)
    for i in range(mesh.ndim):
        dist.all_reduce(found, group=mesh.get_group(i))
    return [float(x) / float(mesh.size()) for x in found.tolist()]


def names_and_shards(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The sharded parameters of a module by name; of a forward pass it may hold gathered ones still."""
    gathered = {id(kept.whole): kept.shard for kept in Units(module).kept() if kept.whole is not None}
    return [(name, gathered.get(id(p), p)) for name, p in module.named_parameters()]
