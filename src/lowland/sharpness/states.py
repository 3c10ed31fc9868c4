"""Weights of several networks of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.errors import InputError
from lowland.sam.buffers import Buffers
from lowland.sam.reductions import Unreduced
from lowland.sam.surely import finally_surely
from lowland.sharpness.kept import generators_kept

State = Mapping[str, Tensor]
_NORMALIZATIONS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters and buffers.

    Args:
        module: The module.

    Example:
        >>> import torch
        >>> from lowland.sharpness import state_of
        >>> module = torch.nn.Linear(2, 1)
        >>> before = state_of(module)
        >>> _ = torch.nn.init.zeros_(module.bias)
        >>> sorted(before), torch.equal(before["weight"], module.weight)
        (['bias', 'weight'], True)
    """
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


@contextmanager
def at_state(module: nn.Module, state: State) -> Iterator[None]:
    """The module has other parameters and buffers inside the block.

    Afterwards it is what it was, bit for bit: parameters, buffers (those too that no state holds, or that
    were replaced), training modes and random generators.

    Args:
        module: The module.
        state: Its parameters and buffers inside the block, by name.

    Yields:
        Nothing: the module itself is changed.

    Raises:
        InputError: If the names or shapes are not the module's.

    Example:
        >>> import torch
        >>> from lowland.sharpness import at_state
        >>> module = torch.nn.Linear(1, 1)
        >>> x, before = torch.ones(1), module(torch.ones(1)).item()
        >>> with at_state(module, {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}):
        ...     print(module(x).item())
        3.0
        >>> module(x).item() == before
        True
    """
    own = module.state_dict()
    require_alike(own, state)
    before = state_of(module)
    modes = [(m, m.training) for m in module.modules()]

    def back() -> None:
        for m, training in modes:
            m.training = training
        _copied(own, before)

    with generators_kept(own.values()), finally_surely(back), Buffers(module, reductions=Unreduced()).kept():
        _copied(own, state)
        yield


@torch.no_grad()
def _copied(own: State, state: State) -> None:
    for name, tensor in own.items():
        tensor.copy_(state[name])


def require_alike(a: State, b: State) -> None:
    """Raises :class:`InputError` unless both have the same names and shapes."""
    for name in {**a, **b}:
        if name not in a or name not in b or a[name].shape != b[name].shape:
            shapes = [tuple(s[name].shape) if name in s else None for s in (a, b)]
            raise InputError(
                f"networks must have the same weights, but {name} has shapes {shapes[0]} and {shapes[1]}."
            )


def mixed(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of states; tensors of whole numbers are the first one's.

    Raises:
        InputError: If names or shapes differ.
    """
    for other in states[1:]:
        require_alike(states[0], other)
    found = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            found[name] = first.clone()
            continue
        pairs = zip(states, weights, strict=True)
        total = torch.stack([w * s[name].to(first.device).double() for s, w in pairs]).sum(0)
        found[name] = total.to(first.dtype)
    return found


def normalization_names(module: nn.Module) -> set[str]:
    """Names of the parameters of batch, group, layer, instance and RMS norms."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, _NORMALIZATIONS)
        for name, _ in part.named_parameters(recurse=False)
    }


def distances(module: nn.Module, states: Mapping[str, State]) -> list[dict[str, Any]]:
    """Norms of networks and distances between them, over all parameters and without normalization ones.

    Args:
        module: A network of the kind, which tells what are parameters.
        states: Their weights, by name.

    Returns:
        For every pair ``a``, ``b`` their ``distance``, its ratio to the geometric mean of their norms
        (``relative``), the ``cosine`` between them and both norms; before these, with ``b`` None, the norm of
        each network. ``parameters`` is ``all`` or, for networks that normalize, ``without normalization``.

    Example:
        >>> import torch
        >>> from lowland.sharpness import distances
        >>> module = torch.nn.Linear(1, 1)
        >>> states = {
        ...     name: {"weight": torch.tensor([[x]]), "bias": torch.tensor([y])}
        ...     for name, x, y in (("one", 3.0, 0.0), ("other", 0.0, 4.0))
        ... }
        >>> row = distances(module, states)[-1]
        >>> row["a"], row["b"], row["distance"], row["cosine"]
        ('one', 'other', 5.0, 0.0)
    """
    norms = normalization_names(module)
    names = {"all": [name for name, _ in module.named_parameters()]}
    if norms:
        names["without normalization"] = [name for name in names["all"] if name not in norms]
    rows: list[dict[str, Any]] = []
    for which, chosen in names.items():
        flat = {key: _flat(state, chosen) for key, state in states.items()}
        rows += [
            {"a": key, "b": None, "parameters": which, "norm_a": v.norm().item()} for key, v in flat.items()
        ]
        for a, b in combinations(flat, 2):
            u, v = flat[a], flat[b]
            scale = (u.norm() * v.norm()).item()
            rows.append(
                {
                    "a": a,
                    "b": b,
                    "parameters": which,
                    "distance": (u - v).norm().item(),
                    "relative": (u - v).norm().item() / scale**0.5 if scale else float("nan"),
                    "cosine": (u @ v).item() / scale if scale else float("nan"),
                    "norm_a": u.norm().item(),
                    "norm_b": v.norm().item(),
                }
            )
    return rows


def _flat(state: State, names: Sequence[str]) -> Tensor:
    return torch.cat(
        [torch.zeros(0, dtype=torch.float64), *(state[n].double().cpu().flatten() for n in names)]
    )
