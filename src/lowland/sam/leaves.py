"""What else a loss depends on: tensors that require a gradient and that nobody holds."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lowland.sam.said import loss_key, warn_caller

_asked: Any = WeakIdKeyDictionary()


class OtherLeaves:
    """Leaves of a loss's graph that require a gradient and will get none, named once for each loss.

    Args:
        params: The parameters that get one.
        loss: The loss.
    """

    def __init__(self, params: Sequence[Tensor], loss: Any) -> None:
        self._known = {id(p) for p in params}
        self._found: dict[int, weakref.ref[Tensor]] = {}
        asked: set[Hashable] = _asked.setdefault(params[0], set())
        key = (loss_key(loss), *map(id, params))
        self._asks = key not in asked
        asked.add(key)

    def note(self, value: Tensor, ours: Sequence[Tensor] = ()) -> None:
        """Takes note of the leaves of ``value``; ``ours`` stand for parameters."""
        if not self._asks:
            return
        self._asks = False
        known = self._known | {id(t) for t in ours}
        self._found = {id(t): weakref.ref(t) for t in leaves_of(value) if id(t) not in known}

    def say(self, batch: Sequence[Tensor], modules: Iterable[nn.Module]) -> None:
        """Names those that are there when the call is over, and not the batch's: the loss made the others.

        Args:
            batch: Tensors of the batch.
            modules: Modules that may hold the leaves.
        """
        given = {id(t) for t in batch}
        others = [t for i, ref in self._found.items() if i not in given and (t := ref()) is not None]
        if others:
            names = _names(modules)
            shown = ", ".join(names.get(id(t), f"one of shape {tuple(t.shape)}") for t in others[:5])
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            warn_caller(
                "the loss depends on tensors that require a gradient, are not among the params and get none: "
                f"{shown}{more}."
            )


def leaves_of(value: Tensor) -> list[Tensor]:
    """The leaves of a graph that require a gradient, each once."""
    variables = (getattr(node, "variable", None) for node in nodes_of(value))
    return list({id(v): v for v in variables if isinstance(v, Tensor)}.values())


def nodes_of(value: Tensor, until: Sequence[Tensor] = ()) -> Iterator[Any]:
    """The nodes of a graph, each once; of its part that ``until`` leads to, only what is reached without."""
    seen: set[Any] = {t.grad_fn for t in until}
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(following for following, _ in node.next_functions)


def _names(modules: Iterable[nn.Module]) -> dict[int, str]:
    return {
        id(p): f"{name} of {type(module).__name__}"
        for module in modules
        for name, p in module._parameters.items()
        if p is not None
    }
