"""A graph as a function of Python that runs its operations one after the other.

What ``torch.fx`` makes of a graph calls every operation through its registry, which takes several times as
long as the function of torch that its users call. Each value goes with its last use.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from lowland.sam.captured.recording import again, stays


def program(graph: fx.Graph, constants: Mapping[str, Tensor], *, direct: bool = True) -> Callable[..., Any]:
    """The function of a graph: of a world, whose draws it puts back between passes, and of its inputs.

    Args:
        graph: The graph.
        constants: The tensors that it names.
        direct: Whether operations are called by the names that torch has for its users, where it has one.
    """
    writer = _Writer(constants, direct=direct)
    for node in graph.nodes:
        writer.add(node)
    return writer.function()


class _Writer:
    """Writes the function, line by line."""

    def __init__(self, constants: Mapping[str, Tensor], *, direct: bool) -> None:
        self._constants, self._direct = constants, direct
        self._arguments = ["world"]
        self._lines: list[str] = []
        self._known: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._arguments.append(node.name)
        elif node.op == "get_attr":
            self._known[node.name] = self._constants[str(node.target)]
        elif node.op == "output":
            self._lines.append(f"return {self._written(node.args[0])}")
        elif node.target in (again, stays):
            self._lines.append(f"world.{node.name.partition('_')[0]}()")
        else:
            self._lines.append(f"{node.name} = {self._called(node)}" if node.users else self._called(node))
            self._forget(node)

    def function(self) -> Callable[..., Any]:
        source = f"def replay({', '.join(self._arguments)}):\n" + "".join(f"    {x}\n" for x in self._lines)
        exec(compile(source, "<a recorded step>", "exec"), self._known)
        found: Callable[..., Any] = self._known["replay"]
        return found

    def _forget(self, node: fx.Node) -> None:
        """Values that nobody needs after this one."""
        last = [a.name for a in node.all_input_nodes if a.op == "call_function" and _last_user(a) is node]
        if last:
            self._lines.append(f"del {', '.join(last)}")

    def _called(self, node: fx.Node) -> str:
        function = _named(node.target) if self._direct and not _has_gaps(node.args) else None
        if self._direct and _only_changes_type(node):
            return f"{self._written(node.args[0])}.to({self._name_of(node.kwargs['dtype'])})"
        kwargs = {k: v for k, v in node.kwargs.items() if (k, v) not in _BY_DEFAULT}
        name = self._name_of(function or getattr(node.target, "_op", None) or node.target)
        given = [self._written(a) for a in node.args]
        given += [f"{key}={self._written(value)}" for key, value in kwargs.items()]
        return f"{name}({', '.join(given)})"

    def _written(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, (list, tuple)):
            inside = ", ".join(map(self._written, value))
            return f"[{inside}]" if isinstance(value, list) or not value else f"({inside},)"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        return self._name_of(value)

    def _name_of(self, thing: Any) -> str:
        """What the function calls a thing that is not written out."""
        key = (type(thing), repr(thing)) if isinstance(thing, float) else id(thing)
        if key not in self._names:
            self._names[key] = f"_{len(self._names)}"
            self._known[self._names[key]] = thing
        return self._names[key]


_BY_DEFAULT = [("pin_memory", False), ("pin_memory", None), ("layout", torch.strided)]


def _named(operation: Any) -> Callable[..., Any] | None:
    """What torch's users call an operation."""
    if not isinstance(operation, torch._ops.OpOverload) or operation.namespace != "aten":
        return None
    name = operation._schema.name.partition("::")[2]
    for owner, kind in ((torch, types.BuiltinFunctionType), (Tensor, types.MethodDescriptorType)):
        found = getattr(owner, name, None)
        if isinstance(found, kind):
            return found
    return None


def _has_gaps(args: tuple[Any, ...]) -> bool:
    """Whether a list leaves something out, as an index of a later dimension does."""
    return any(isinstance(a, (list, tuple)) and any(x is None for x in a) for a in args)


def _only_changes_type(node: fx.Node) -> bool:
    """Whether a copy is one in another type, on the same device and in the same layout."""
    source = node.args[0] if node.args else None
    if node.target is not torch.ops.aten._to_copy.default or not {*node.kwargs} <= {"dtype", "device"}:
        return False
    if not isinstance(source, fx.Node):  # a number, which becomes a tensor
        return False
    before, after = source.meta["layout"], node.meta["layout"]
    return bool(before[2] != after[2] and before[3] == after[3])


def _last_user(node: fx.Node) -> fx.Node:
    return max(node.users)
