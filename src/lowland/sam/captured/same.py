"""Whether two recordings say the same."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx

from lowland.sam.buffers import same_numbers
from lowland.sam.captured.recording import Recording


def difference(a: Recording, b: Recording) -> str | None:
    """What the second of two recordings does differently, in the user's words; ``None`` for nothing."""
    if len(a.graph.nodes) != len(b.graph.nodes):
        return "other operations in each run"
    twins: dict[fx.Node, fx.Node] = {}
    for one, other in zip(a.graph.nodes, b.graph.nodes, strict=True):
        twins[one] = other
        if one.op != other.op or (one.op != "get_attr" and one.target != other.target):
            return "other operations in each run"
        if one.op == "get_attr":
            literal = one.target in a.literals and other.target in b.literals
            if not _same_tensor(
                a.constants[str(one.target)], b.constants[str(other.target)], literal=literal
            ):
                return "another tensor in each run"
        elif not _alike((one.args, dict(one.kwargs)), (other.args, dict(other.kwargs)), twins):
            return f"another number in each run, in {_name(one)}"
    return None


def _same_tensor(a: Tensor, b: Tensor, *, literal: bool) -> bool:
    """Whether two constants are one, or were made of the same numbers."""
    return a is b or (
        literal and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and same_numbers(a, b)
    )


def _alike(a: Any, b: Any, twins: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(a, fx.Node):
        return twins.get(a) is b
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_alike(x, y, twins) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], twins) for key in a)
    both_nan = isinstance(a, float) and math.isnan(a) and math.isnan(b)
    return bool(a == b) or both_nan


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return str(node.target) if schema is None else str(schema.name).partition("::")[2]
