"""Whether two recordings say the same, and whether a replay finds what the step does."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from lowland.sam.buffers import same_numbers
from lowland.sam.captured.recording import Recording
from lowland.sam.containers import tensors_of
from lowland.sam.objective import Objective
from lowland.sam.total import Found


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
            return f"another number in each run, in {_operation(one)}"
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


def _operation(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return str(node.target) if schema is None else str(schema.name).partition("::")[2]


def difference_of(
    objective: Objective, replayed: Found, expected: list[Tensor], *, digits: float
) -> str | None:
    """The first tensor in which a replay differs from what is expected, in the user's words.

    Gradients are measured by the norm of all of them together: one that is zero but for rounding is nothing.

    Args:
        objective: The loss and its parameters.
        replayed: What a replay found.
        expected: The tensors of what the step itself found.
        digits: By how many units of the last digit they may differ.
    """
    gradients = len(tensors_of([replayed.perturbed, replayed.unperturbed, replayed.climb_gradients]))
    whole = sum(_size(g) ** 2 for g in expected[: len(tensors_of(replayed.perturbed))]) ** 0.5
    for i, (a, b) in enumerate(zip(tensors_of(replayed), expected, strict=True)):
        scale = whole if i < gradients else _size(b)
        if a.shape != b.shape or not _close(a, b, digits, scale):
            return _name(objective, replayed, i, gradients)
    return None


def _close(a: Tensor, b: Tensor, digits: float, scale: float) -> bool:
    if same_numbers(a, b):
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return False
    same = (a == b) | (a.isnan() & b.isnan())
    apart = (a - b).masked_fill(same, 0.0)
    if not bool(apart.isfinite().all()):
        return False
    return _size(apart) <= digits * torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps * scale


def _size(tensor: Tensor) -> float:
    """The norm of what is finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0.0
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return float(wide.masked_fill(~wide.isfinite(), 0.0).norm())


def _name(objective: Objective, found: Found, i: int, gradients: int) -> str:
    """What the i-th tensor of what was found is called."""
    places = [k for k, g in enumerate(found.perturbed) if g is not None]
    if i >= len(places):
        return "a gradient of the climb" if i < gradients else "the loss, or what is returned beside it"
    param = objective.params[places[i]]
    for module in objective.buffers.modules():
        for name, p in module._parameters.items():
            if p is param:
                return f"the gradient of {name} of a {type(module).__name__}"
    return f"the gradient of parameter {places[i]}"
