"""Which values of a graph share memory, and which of it is written to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

SMALL = 4096
"""Elements of a value that may be held for longer than it is needed."""


class Memory:
    """Where the values of a graph are.

    Args:
        graph: The graph, with the layout of each value in its node's ``meta``.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._at = {node: i for i, node in enumerate(graph.nodes)}
        self._last: dict[fx.Node, int] = {}
        self._written: set[fx.Node] = set()
        for node in graph.nodes:
            for used in node.all_input_nodes:
                self._last[memory_of(used)] = self._at[node]
            self._written.update(map(memory_of, written_by(node)))

    def is_written(self, node: fx.Node) -> bool:
        """Whether something writes to a value, or to what it is a view of."""
        return memory_of(node) in self._written

    def may_stay(self, node: fx.Node, until: fx.Node) -> bool:
        """Whether a value is there at a later node in any case, or is small."""
        base = memory_of(node)
        if base.op in ("placeholder", "get_attr") or self._last.get(base, 0) >= self._at[until]:
            return True
        layout = base.meta.get("layout")
        return layout is not None and int(math.prod(layout[0])) <= SMALL

    def is_free_after(self, value: fx.Node, node: fx.Node, other: object) -> bool:
        """Whether an operation may write what comes of a ``value`` and another to the value's own memory."""
        base, layout = memory_of(value), value.meta.get("layout")
        if base.op != "call_function" or layout is None or self._last.get(base) != self._at[node]:
            return False
        elsewhere = not isinstance(other, fx.Node) or other is value or memory_of(other) is not base
        whole = layout == base.meta["layout"] == node.meta.get("layout")
        return whole and elsewhere and not self._is_shared(value)

    def moves(self, node: fx.Node, value: fx.Node) -> None:
        """Takes note that the result of an operation is in the memory of a value."""
        base = memory_of(value)
        self._last[base] = max(self._last[base], self._last.pop(node, 0))
        self._written.add(base)
        node.meta["of"] = value

    @staticmethod
    def _is_shared(value: fx.Node) -> bool:
        """Whether elements of a tensor may stand in the same place, as of one that was expanded."""
        shape, stride, *_ = value.meta["layout"]
        return any(n > 1 and step == 0 for n, step in zip(shape, stride, strict=True))

    def holds_until(self, node: fx.Node, until: fx.Node) -> None:
        """Takes note that a value is needed until a later node's own last use."""
        base = memory_of(node)
        self._last[base] = max(self._last.get(base, 0), self._last.get(memory_of(until), 0))


def memory_of(node: fx.Node) -> fx.Node:
    """The value that a view is one of, as it was seen when the graph was recorded."""
    while "of" in node.meta:
        node = node.meta["of"]
    return node


def written_by(node: fx.Node) -> Iterator[fx.Node]:
    """The values that an operation writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for i, argument in enumerate(schema.arguments):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, fx.Node))
