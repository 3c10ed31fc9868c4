"""Whether an evaluation looks at a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lowland.errors import InputError

_NO_VALUES = (torch.Size, torch.device, torch.dtype, torch.layout, int, type(None))
"""What functions return that ask for a tensor's kind and not for its numbers."""


@contextmanager
def require_read(module: nn.Module) -> Iterator[None]:
    """Inside the block some parameter of ``module`` must be used, or one of its layers run.

    What torch has scripted runs out of sight, and is believed.

    Raises:
        InputError: At the end of the block, if none was: it evaluates another network.
    """
    reads = _Reads(module)
    with ExitStack() as hooks:
        for part in module.modules():
            if isinstance(part, torch.jit.ScriptModule):
                reads.seen = True
            else:
                hooks.callback(part.register_forward_pre_hook(reads.ran).remove)
        with reads:
            yield
    if not reads.seen:
        raise InputError("evaluate must look at the module's weights, got a function that used none of them.")


class _Reads(TorchFunctionMode):
    """Watches for the parameters among the arguments of functions, and for layers that run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.seen = False
        self._ids = {id(p) for p in module.parameters()}

    def ran(self, *_: Any) -> None:
        """A layer runs."""
        self.seen = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs every function as it is."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if not self.seen and not isinstance(found, _NO_VALUES):
            leaves = tree_leaves((args, kwargs))
            self.seen = any(isinstance(leaf, Tensor) and id(leaf) in self._ids for leaf in leaves)
        return found
