"""Which passes move the running statistics of batch norm, and any other buffer of a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

BatchNormStats = Literal["first", "both", "frozen"]
"""``first``: only the unperturbed pass moves running statistics; ``both``: every pass; ``frozen``: none."""


class Buffers:
    """The buffers of a module, or of whatever modules run, kept or put back around a pass.

    A layer is not asked for its type: every buffer is put back, so that custom batch norms, spectral
    norms and counters follow the policy like ``torch.nn.BatchNorm2d``.

    Args:
        module: The module whose buffers these are; ``None`` finds the modules as they run.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._module = module
        self._discover = module is None
        self._modules = {} if module is None else {id(m): m for m in module.modules() if m._buffers}

    @contextmanager
    def kept(self) -> Iterator[Snapshot]:
        """Whatever the block does to buffers is undone at its end, also on an exception."""
        saved = Snapshot(self._modules.values())
        with self._watched(saved):
            try:
                yield saved
            finally:
                saved.restore()

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """If the block raises, buffers and training modes are what they were before it."""
        saved = Snapshot(self._modules.values())
        training = {m: m.training for m in (() if self._module is None else self._module.modules())}
        with self._watched(saved):
            try:
                yield
            except BaseException:
                saved.restore()
                for module, mode in training.items():
                    module.training = mode
                raise

    def modules(self) -> Iterable[nn.Module]:
        """All modules of the module; those with buffers that ran so far if there was none to name."""
        return self._modules.values() if self._module is None else self._module.modules()

    def ids(self) -> set[int]:
        """The buffers of the module, or of the modules that ran so far."""
        return {id(b) for m in self._modules.values() for b in m._buffers.values() if b is not None}

    @contextmanager
    def _watched(self, saved: Snapshot) -> Iterator[None]:
        """Modules that run in the block are added to ``saved`` just before they run."""
        if not self._discover:
            yield
            return

        def see(module: nn.Module, _: Any) -> None:
            if module._buffers:
                self._modules[id(module)] = module
                saved.add(module)

        handle = register_module_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()


class Snapshot:
    """Copies of the buffers of some modules, each as it was when its module was added.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._seen: set[int] = set()
        self._saved: list[tuple[dict[str, Tensor | None], str, Tensor | None, Tensor | None]] = []
        for module in modules:
            self.add(module)

    def add(self, module: nn.Module) -> None:
        """Takes the buffers of ``module`` as they are now, unless they were taken before."""
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        with torch._C.DisableTorchFunction():  # a mode that watches the loss need not see this
            for name, buffer in module._buffers.items():
                value = None if buffer is None else buffer.detach().clone()
                self._saved.append((module._buffers, name, buffer, value))

    def changed(self) -> list[tuple[str, Tensor | None]]:
        """Names of buffers that are not what they were, and the buffers that they were."""
        return [
            (name, buffer)
            for owner, name, buffer, value in self._saved
            if owner.get(name) is not buffer
            or (buffer is not None and value is not None and not _same(buffer, value))
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back."""
        for owner, name, buffer, value in self._saved:
            if buffer is not None and value is not None:
                buffer.copy_(value)
            owner[name] = buffer  # a layer may have put another tensor in its place


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaNs included."""
    if a.is_floating_point() or a.is_complex():
        return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    return torch.equal(a, b)
