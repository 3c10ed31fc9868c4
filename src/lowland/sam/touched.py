"""Whether a loss looks at the examples that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


@contextmanager
def require_touched(batch: Any) -> Iterator[None]:
    """Inside the block some tensor of ``batch`` must be given to some function of torch.

    Raises:
        ValueError: At the end of the block, if none was.
    """
    watched = _Touched(batch)
    with watched:
        yield
    if not watched.touched:
        raise ValueError(
            "loss must be that of the examples it is given where m cuts the batch, "
            "got a loss that used none of its arguments."
        )


class _Touched(TorchFunctionMode):
    def __init__(self, batch: Any) -> None:
        super().__init__()
        self.touched = False
        self._ids = {id(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs every function as it is, and looks at its arguments until one is found."""
        kwargs = kwargs or {}
        if not self.touched:
            self.touched = any(id(leaf) in self._ids for leaf in tree_leaves((args, kwargs)))
        return func(*args, **kwargs)
