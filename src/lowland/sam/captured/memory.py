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

    def stays(self, node: fx.Node, until: fx.Node) -> None:
        """Takes note that a value is needed until a later node's own last use."""
        base = memory_of(node)
        self._last[base] = max(self._last.get(base, 0), self._last.get(memory_of(until), 0))


def memory_of(node: fx.Node) -> fx.Node:
    """The value that a view is one of."""
    while node.op == "call_function":
        returns = getattr(getattr(node.target, "_schema", None), "returns", ())
        if not returns or returns[0].alias_info is None or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]
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
