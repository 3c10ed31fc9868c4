"""Parameters in pieces, as FSDP and tensor parallelism keep them: which ones there are a way for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def is_cut(module: nn.Module | None, params: Sequence[Any]) -> bool:
    """Whether parameters, or others of their module, are in pieces."""
    return any(_is_piece(p) for p in params) or _sharded_by(module) is not None


def refuse_unknown(module: nn.Module | None, params: Sequence[Tensor]) -> None:
    """Refuses parameters in pieces other than those of ``fully_shard``, given as their module.

    Raises:
        ValueError: If they are.
    """
    kind = _sharded_by(module)
    if kind == "FullyShardedDataParallel" or any(hasattr(p, "_fsdp_flattened") for p in params):
        raise ValueError(
            "module must be sharded by torch.distributed.fsdp.fully_shard (FSDP2), "
            "got one that FullyShardedDataParallel (FSDP1) has sharded."
        )
    if module is None:
        raise ValueError(
            "params must be given as their module, SAM(model), where FSDP has sharded them, got DTensors."
        )
    if kind is None:
        raise ValueError(
            "params must be whole or sharded by torch.distributed.fsdp.fully_shard, got DTensors of tensor "
            "parallelism."
        )


def require_whole(params: Sequence[Any]) -> None:
    """Refuses parameters in pieces where there is no way for them.

    Raises:
        ValueError: If some are.
    """
    if any(map(_is_piece, params)):
        raise ValueError(
            "params must be whole where sharpness is measured, got some that FSDP has sharded: load a "
            "checkpoint of them into one process."
        )


def names_and_parameters(module: nn.Module) -> Sequence[tuple[str, Tensor]]:
    """Those of a module, in pieces if they are cut."""
    if _sharded_by(module) == "FSDPModule":
        from lowland.sam.sharded.fsdp import names_and_shards

        return names_and_shards(module)
    return list(module.named_parameters())


def has_gradient(module: nn.Module | None, params: Sequence[Any]) -> bool:
    """Whether some ``.grad`` is neither absent nor zero; of pieces, those that other ranks have included."""
    found = [p.grad for p in params if isinstance(p, Tensor) and p.grad is not None]
    if any(_is_piece(p) for p in params) and module is not None:
        from lowland.sam.sharded.waiting import any_somewhere

        return any_somewhere(module, found)
    return any(bool((g.coalesce().values() if g.is_sparse else g).any()) for g in found)


def _is_piece(p: Any) -> bool:
    return type(p).__name__ == "DTensor" or getattr(p, "_fsdp_flattened", False)


def _sharded_by(module: nn.Module | None) -> str | None:
    """Which class of torch has sharded some of a module."""
    if module is None or "torch.distributed.fsdp" not in sys.modules:
        return None
    found = (_sharding_class(type(part)) for part in module.modules())
    return next(filter(None, found), None)


_known: dict[type, str | None] = {}


def _sharding_class(kind: type) -> str | None:
    if kind not in _known:
        names = [base.__name__ for base in kind.__mro__]
        _known[kind] = next((n for n in names if n in {"FullyShardedDataParallel", "FSDPModule"}), None)
    return _known[kind]
