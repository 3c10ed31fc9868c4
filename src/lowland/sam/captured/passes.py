"""What is left out of a graph because the same comes of it without."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lowland.sam.captured.memory import Memory
from lowland.sam.captured.recording import again, stays

_aten = torch.ops.aten
_IN_PLACE = {_aten.add.Tensor: _aten.add_.Tensor, _aten.mul.Tensor: _aten.mul_.Tensor}
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


def without_detaching(graph: fx.Graph) -> None:
    """A replay records no gradients: there is nothing to detach from."""
    for node in graph.nodes:
        if node.target is _aten.detach.default:
            _drop(node)


def without_views_of_views(graph: fx.Graph) -> None:
    """The view of a view is one of the first tensor; in the shape that this has, it is this tensor."""
    for node in (n for n in graph.nodes if n.target in _VIEWS):
        (source,) = node.all_input_nodes
        if source.target in _VIEWS:
            (first,) = source.all_input_nodes
            node.replace_input_with(source, first)
            source = first
        if node.meta.get("layout", node) == source.meta.get("layout", source):
            _drop(node)


def without_repeating(graph: fx.Graph) -> None:
    """What was computed before is not computed again, if it is there still: nothing is held for longer."""
    memory = Memory(graph)
    known: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or _acts(node) or memory.is_written(node):
            continue
        if any(memory.is_written(used) for used in node.all_input_nodes):
            continue
        key = node.target, _hashable(node.args), _hashable(dict(node.kwargs))
        before = known.setdefault(key, node)
        if before is node:
            continue
        if memory.may_stay(before, node):
            memory.holds_until(before, node)
            node.meta["of"] = before
            node.replace_all_uses_with(before)
            graph.erase_node(node)
        else:
            known[key] = node


def without_allocating(graph: fx.Graph) -> None:
    """A sum or a product takes the memory of an operand that nobody needs afterwards."""
    memory = Memory(graph)
    for node in graph.nodes:
        in_place = _IN_PLACE.get(node.target)
        if in_place is None or node.kwargs or len(node.args) != 2:
            continue
        a, b = node.args
        for one, other in ((a, b), (b, a)):
            if isinstance(one, fx.Node) and memory.is_free_after(one, node, other):
                node.target, node.args = in_place, (one, other)
                memory.moves(node, one)
                break


def without_marks(graph: fx.Graph) -> None:
    """Where nothing is drawn, nobody asks for the beginnings of passes."""
    for node in graph.nodes:
        if node.target in (again, stays):
            graph.erase_node(node)


def without_what_nobody_uses(graph: fx.Graph) -> None:
    """Operations that write to nothing, and whose results go nowhere."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or _acts(node))


def _acts(node: fx.Node) -> bool:
    """Whether an operation does something beside what it returns."""
    if node.target in (again, stays):
        return True
    schema = getattr(node.target, "_schema", None)
    draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return draws or (schema is not None and schema.is_mutable)


def _hashable(value: Any) -> Any:
    """Arguments of an operation as a key."""
    if isinstance(value, dict):
        return tuple((key, _hashable(v)) for key, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return value if isinstance(value, fx.Node) else (type(value), repr(value))


def _drop(node: fx.Node) -> None:
    """Puts the value that a node is made of in its place."""
    (source,) = node.all_input_nodes
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
