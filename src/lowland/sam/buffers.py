"""What modules hold beside the weights that are trained: which passes move it, and what puts it back."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lowland.sam.containers import version_of
from lowland.sam.frozen import Writes
from lowland.sam.private import unseen_by_modes
from lowland.sam.reductions import COLLECTIVE, Reductions
from lowland.sam.surely import finally_surely

BatchNormStats = Literal["first", "both", "frozen"]
"""``first``: only the unperturbed pass moves running statistics; ``both``: every pass; ``frozen``: none."""


Mark = tuple[dict[str, Tensor | None], str, Tensor | None, int]


class Buffers:
    """The buffers of all modules that run in a call, and their parameters that the call does not train.

    A layer is not asked for its type: every buffer is put back, so that custom batch norms, spectral
    norms and counters follow the policy like ``torch.nn.BatchNorm2d``. Parameters are watched, since
    momentum encoders move some in their forward pass, and copied only when they are about to be written to.

    Args:
        module: The module whose buffers these are; others are found as they run.
        known: Other modules that may run, where they are known beforehand.
        trained: The parameters of the call.
        reductions: Is told of modules before they run; ``None`` where these see every pass.

    Attributes:
        num_writes: How often a parameter that is not trained was written to.
    """

    def __init__(
        self,
        module: nn.Module | None,
        known: Iterable[nn.Module] = (),
        trained: Iterable[Tensor] = (),
        reductions: Reductions | None = None,
    ) -> None:
        self.module = module
        self.reductions = reductions
        self._modules: dict[int, nn.Module] = {}
        self._trained = {id(p) for p in trained}
        self._untrained: list[Tensor] = []
        self._snapshots: list[Snapshot] = []
        self._start: Snapshot | None = None
        self._writes: Writes | None = None
        self._handle: Any = None
        self._thread = 0
        self.num_writes = 0
        for root in (*(() if module is None else (module,)), *known):
            self._know(root)

    @contextmanager
    def watched(self) -> Iterator[Snapshot]:
        """Modules that run in the block are found; what all held before it is in the snapshot."""
        saved = self._begun(training=True)
        outermost = self._handle is None
        if outermost:
            self._handle = register_module_forward_pre_hook(self._see)
            self._thread = threading.get_ident()
        try:
            yield saved
        finally:
            self._end(saved)
            if outermost:
                self.stop_watching()

    @contextmanager
    def unwatched_on_error(self) -> Iterator[None]:
        """If the block raises, modules are not watched any more, whatever the interrupt left."""
        try:
            yield
        except BaseException:
            self.stop_watching()
            raise

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """If the block raises, buffers and training modes are what they were before it."""
        with self.watched() as saved:
            try:
                yield
            except BaseException:
                saved.restore()
                raise

    @contextmanager
    def same_start(self) -> Iterator[None]:
        """Passes that are :meth:`kept` in the block see what stands at its beginning."""
        before, self._start = self._start, self._begun()
        try:
            yield
        finally:
            self._end(self._start)
            self._start = before

    @contextmanager
    def kept(self) -> Iterator[Snapshot]:
        """A pass that sees what the first pass over its group saw, and leaves nothing of what it does."""
        with nullcontext() if self._handle is not None else self.watched():
            saved = self._begun(() if self._start is None else self._start.written())
            with finally_surely(saved.restore):
                try:
                    if self._start is not None:
                        self._start.restore()
                    yield saved
                finally:
                    self._end(saved)

    def writes_noticed(self) -> AbstractContextManager[object]:
        """A block in which parameters that are not trained are copied before they are written to."""
        self._writes = None
        if self._untrained and not any(is_compiled(m) for m in self._modules.values()):
            self._writes = Writes(self._untrained, self._write)
        return nullcontext() if self._writes is None else self._writes

    def modules(self) -> Collection[nn.Module]:
        """The modules of the module, and those that ran so far."""
        return self._modules.values()

    def ids(self) -> set[int]:
        """The buffers of these modules."""
        return {id(b) for m in self._modules.values() for b in m._buffers.values() if b is not None}

    def marks(self) -> list[Mark]:
        """What tells whether a buffer is written to by its own name, or another put in its place."""
        return [
            (module._buffers, name, buffer, version_of(buffer))
            for module in self._modules.values()
            for name, buffer in module._buffers.items()
        ]

    @staticmethod
    def moved_since(marks: list[Mark]) -> list[tuple[str, Tensor | None]]:
        """Names of the buffers that were, and the buffers."""
        return [
            (name, buffer)
            for owner, name, buffer, version in marks
            if owner.get(name) is not buffer or version_of(buffer) != version
        ]

    def give_up_after(self, snapshot: Snapshot) -> None:
        """Snapshots that are younger put nothing back any more: an interrupt may have left them open."""
        index = next(i for i, s in enumerate(self._snapshots) if s is snapshot)
        for younger in self._snapshots[index + 1 :]:
            younger.give_up()
        self._snapshots, self._start = self._snapshots[: index + 1], None

    def stop_watching(self) -> None:
        """Takes the hook away, also one that an interrupt left behind."""
        if self.reductions is not None:
            self.reductions.end()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _see(self, module: nn.Module, _: Any) -> None:
        known = id(module) in self._modules
        if known and not isinstance(module, COLLECTIVE):
            return  # before anything that torch.compile, which traces hooks too, cannot trace
        if threading.get_ident() != self._thread:
            return
        if not known:
            self._found(module)
        self.begin(module)

    def begin(self, module: nn.Module) -> None:
        """Makes what comes before a module's first pass: processes may agree on its buffers."""
        if self.reductions is not None and self.reductions.begin(module):
            owners = {id(part._buffers) for part in module.modules()}
            for saved in self._snapshots:
                saved.take_again(owners)

    def _know(self, root: nn.Module) -> list[nn.Module]:
        """Takes a module and those inside it, before anything of them has run."""
        found, waiting = [], [root]
        while waiting:
            module = waiting.pop()
            if id(module) not in self._modules:
                self._modules[id(module)] = module
                found.append(module)
                of_module = [p for p in module._parameters.values() if p is not None]
                self._untrained += [p for p in of_module if id(p) not in self._trained]
                waiting.extend(m for m in module._modules.values() if m is not None)
        return found

    def _found(self, root: nn.Module) -> None:
        for module in self._know(root):
            for saved in self._snapshots:
                saved.add(module)
        if self._writes is not None:
            self._writes.add(self._untrained)

    def _write(self, param: Tensor) -> None:
        self.num_writes += 1
        for saved in self._snapshots:
            saved.write(param)

    def _begun(self, written: Iterable[Tensor] = (), *, training: bool = False) -> Snapshot:
        full = [m for m in self._modules.values() if len(m._buffers)]
        empty = [m._buffers for m in self._modules.values() if not len(m._buffers)]
        saved = Snapshot(full, empty, self._modules.values() if training else None)
        for p in written:  # it moved in the first pass, and is about to be put back for this one
            saved.write(p)
        self._snapshots.append(saved)
        return saved

    def _end(self, saved: Snapshot | None) -> None:
        self._snapshots = [s for s in self._snapshots if s is not saved]


class Snapshot:
    """What some modules held, each as it was when it was added.

    Args:
        modules: The modules with buffers.
        empty: The places for buffers of modules without.
        training: Modules whose modes are taken too, as of those that are added; ``None`` for no modes.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        empty: list[dict[str, Tensor | None]],
        training: Iterable[nn.Module] | None,
    ) -> None:
        self._buffers: list[tuple[dict[str, Tensor | None], str, Tensor | None, Tensor | None]] = []
        self._names: list[tuple[dict[str, Tensor | None], set[str]]] = []
        self._empty = empty
        self._written: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._training = None if training is None else [(m, m.training) for m in training]
        for module in modules:
            self._take(module)

    def give_up(self) -> None:
        """Forgets everything: there is nothing to put back."""
        self._buffers, self._names, self._empty = [], [], []
        self._written, self._training = {}, None

    def add(self, module: nn.Module) -> None:
        """Takes another module as it is now."""
        if self._training is not None:
            self._training.append((module, module.training))
        if len(module._buffers):
            self._take(module)
        else:
            self._empty.append(module._buffers)

    def _take(self, module: nn.Module) -> None:
        owner = module._buffers
        if isinstance(owner, dict):  # that of a scripted module cannot grow
            self._names.append((owner, set(owner)))
        with unseen_by_modes():  # a mode that watches the loss need not see this
            for name, buffer in owner.items():
                value = None if buffer is None else buffer.detach().clone()
                self._buffers.append((owner, name, buffer, value))

    @torch.no_grad()
    def take_again(self, owners: Collection[int]) -> None:
        """Takes the buffers of some modules as they are now, by the identities of what holds them."""
        with unseen_by_modes():
            for owner, _, buffer, value in self._buffers:
                if id(owner) in owners and buffer is not None and value is not None:
                    value.copy_(buffer)

    @torch.no_grad()
    def write(self, param: Tensor) -> None:
        """Takes a parameter, which is about to be written to."""
        if id(param) not in self._written:
            memory = param.data
            self._written[id(param)] = param, memory, memory.clone()

    def written(self) -> list[Tensor]:
        """The parameters that were written to."""
        return [param for param, _, _ in self._written.values()]

    def changed(self) -> list[tuple[str, Tensor | None]]:
        """Names of buffers that are not what they were, and the buffers that they were."""
        return [
            (name, buffer)
            for owner, name, buffer, value in self._buffers
            if owner.get(name) is not buffer
            or (buffer is not None and value is not None and not same_numbers(buffer, value))
        ]

    def restore(self) -> None:
        """Puts everything back; once more is as good."""
        for owner in self._empty:
            if len(owner):
                owner.clear()
        if self._buffers or self._written:
            self._restore_tensors()
        for module, mode in self._training or ():
            module.training = mode

    @torch.no_grad()
    def _restore_tensors(self) -> None:
        for owner, names in self._names:
            for name in owner.keys() - names:
                del owner[name]
        with unseen_by_modes():
            for owner, name, buffer, value in self._buffers:
                if buffer is not None and value is not None:
                    buffer.copy_(value)
                owner[name] = buffer  # a layer may have put another tensor in its place
            for param, memory, value in self._written.values():
                param.data = memory
                memory.copy_(value)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has made something of a module."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaNs included."""
    if a.is_floating_point() or a.is_complex():
        return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    return torch.equal(a, b)
