"""What ``torch.compile`` makes of a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from lowland.sam.captured.recording import again, stays


def compiled(graph: fx.Graph) -> fx.Graph:
    """The same graph in as few operations as it has passes: between them, what is drawn is put back.

    Draws are those of the uncompiled operations, so that all passes see the same.
    """
    found, known = fx.Graph(), dict[fx.Node, fx.Node]()
    for part in _parts(graph):
        kind = part[0].op
        if kind in ("placeholder", "get_attr", "output") or part[0].target in (again, stays):
            known[part[0]] = found.node_copy(part[0], known.__getitem__)
            continue
        given, needed = _given(part), _needed(part)
        results = found.call_function(_compiled(part, given, needed), tuple(known[n] for n in given))
        for i, node in enumerate(needed):
            known[node] = found.call_function(operator.getitem, (results, i))
            known[node].meta = node.meta
    return found


def _parts(graph: fx.Graph) -> list[list[fx.Node]]:
    """Operations that are run together; by itself what is none, or stands between them."""
    first = [[n] for n in graph.nodes if n.op in ("placeholder", "get_attr")]
    parts: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if node.op == "output" or node.target in (again, stays):
            parts += [[node], []]
        elif node.op == "call_function":
            parts[-1].append(node)
    return [*first, *(part for part in parts if part)]


def _given(part: list[fx.Node]) -> list[fx.Node]:
    """What the operations of a part need from elsewhere."""
    inside = set(part)
    return list(dict.fromkeys(n for node in part for n in node.all_input_nodes if n not in inside))


def _needed(part: list[fx.Node]) -> list[fx.Node]:
    """What is needed of them elsewhere."""
    inside = set(part)
    return [node for node in part if any(user not in inside for user in node.users)]


def _compiled(part: list[fx.Node], given: list[fx.Node], needed: list[fx.Node]) -> Callable[..., Any]:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for i, node in enumerate(given):
        copies[node] = graph.placeholder(f"given_{i}")
    for node in part:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in needed])
    module = fx.GraphModule(torch.nn.Module(), graph)
    on_device = any(node.meta["layout"][3].type == "cuda" for node in given if "layout" in node.meta)
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": on_device}
    compiled = torch.compile(module.forward, dynamic=False, fullgraph=True, options=options)
    return _own(compiled) if on_device else compiled


def _own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose results are not in the memory that a graph of the device writes to in its next run."""

    def own(*given: Any) -> list[Any]:
        return [t.clone() for t in function(*given)]

    return own
