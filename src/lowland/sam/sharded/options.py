"""What is asked of a sharded model in vain, refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from lowland.sam.batch import MicroBatches
from lowland.sam.functional import Functional
from lowland.sam.vectors.many import serves_many

if TYPE_CHECKING:
    from lowland.sam.held import Options

BOTH_WAYS = (
    "each group of a rank by itself (engine='auto' or 'batched', any m), or one step along the gradient of "
    "all ranks (process_group=, engine='auto' or 'loop')"
)


def check_options(asked: Options) -> None:
    """Refuses what has no form for a sharded model.

    Raises:
        ValueError: If it is so.
    """
    check_parts(asked.ascent, asked.engine, asked.process_group)
    if isinstance(asked.loss, Functional):
        raise ValueError("loss must be one function where the model is sharded, got Functional.")
    if isinstance(asked.batch, MicroBatches):
        raise ValueError(
            "batch must be whole where the model is sharded, got MicroBatches: call with scale=1/k for each."
        )
    refuse_options(
        combine=asked.combine,
        source=asked.ascent_batch,
        captures=asked.captures,
        max_memory=asked.max_memory,
    )


def refuse_options(*, combine: Any, source: Any, captures: Any, max_memory: Any) -> None:
    """Refuses options that have no form for a sharded model.

    Raises:
        ValueError: If one is given.
    """
    given = {"combine": combine, "source": source, "capture": captures, "max_memory": max_memory}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} must be left out where the model is sharded, got one.")


def check_parts(ascent: Any, engine: str, process_group: Any) -> None:
    """Refuses engines and ascents that have no form for a sharded model.

    Raises:
        ValueError: If it is so.
    """
    if engine == ("loop" if process_group is None else "batched"):
        raise ValueError(f"a sharded model climbs in one of two ways, {BOTH_WAYS}, got engine={engine!r}.")
    if getattr(ascent, "reads_weights", True) or not serves_many(ascent):
        raise ValueError(
            "ascent must climb along the gradient whatever the weights are (reads_weights = False, "
            f"of_many = True) where the model is sharded, got {type(ascent).__name__}."
        )


def check_group(process_group: Any, mesh: Any) -> None:
    """Refuses processes that are not those of the mesh.

    Raises:
        ValueError: If it is so.
    """
    if process_group is None:
        return
    ranks = sorted(mesh.mesh.flatten().tolist())
    own = sorted(dist.get_process_group_ranks(process_group))
    if own != ranks:
        raise ValueError(
            f"process_group must be that of all ranks that the model is sharded over, {ranks}, got {own}."
        )
