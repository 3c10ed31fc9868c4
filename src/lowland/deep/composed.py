"""Running statistics that several processes move, each by its own groups, as if one had moved them by all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowland.deep.config import TrainConfig
from lowland.deep.processes import Ranks
from lowland.errors import InputError


@contextmanager
def composed(layers: Sequence[_BatchNorm], ranks: Ranks) -> Iterator[None]:
    r"""After the block, running statistics are those of all processes' groups, in the order of the processes.

    A group moves them by :math:`r \leftarrow (1 - a) r + a s`. So :math:`n` groups are the affine map
    :math:`r \mapsto (1 - a)^n r + c`, whose :math:`c` is told by where they took :math:`r`, and the maps of
    the processes are composed in their order.

    Args:
        layers: The batch norms that move; see :func:`moving`.
        ranks: Which process of how many this is.
    """
    if not (layers and ranks.several):
        yield
        return
    counts, before = _counts(layers), [_statistics(layer) for layer in layers]
    yield
    moved = (_counts(layers) - counts).double()
    shifts = [
        after - _kept(layer, n) * start
        for layer, n, start, after in zip(layers, moved, before, map(_statistics, layers), strict=True)
    ]
    found = list(before)
    total = torch.zeros_like(moved)
    for other in ranks.gathered(torch.cat([moved, *shifts])):
        n, *shift = torch.split(other, [len(layers), *(len(s) for s in shifts)])
        total += n
        found = [
            _kept(layer, times) * r + c for layer, times, r, c in zip(layers, n, found, shift, strict=True)
        ]
    for layer, r, number, times in zip(layers, found, counts, total, strict=True):
        _put(layer, r, number + times.long())


def moving(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms whose running statistics move in training.

    Args:
        model: The network, in its training mode.
    """
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]


def require_composable(config: TrainConfig, model: nn.Module, moved: Sequence[str], ranks: Ranks) -> None:
    """Refuses buffers that training moves in a way that is not known.

    Args:
        config: The run.
        model: Its network.
        moved: Names of the buffers that a pass has moved.
        ranks: Which process of how many.

    Raises:
        InputError: If there is one, and there are several processes.
    """
    if not ranks.several:
        return
    known = set()
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            if layer.training and layer.track_running_stats and layer.momentum is None:
                raise InputError(
                    f"momentum of batch normalization (layer {name}) must be a number for {ranks.size} "
                    "processes, got None; or use one process."
                )
            known |= {f"{name}.{key}".lstrip(".") for key, _ in layer.named_buffers(recurse=False)}
    for name in moved:
        if name not in known:
            raise InputError(
                f"buffers of model {config.model} must stay as they are for {ranks.size} processes, unless "
                f"they are those of batch normalization, but {name} moves; use one process."
            )


def _counts(layers: Sequence[_BatchNorm]) -> Tensor:
    counts = [layer.num_batches_tracked for layer in layers]
    return torch.stack([count for count in counts if count is not None])


def _statistics(layer: _BatchNorm) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return torch.cat([layer.running_mean, layer.running_var]).double()


def _kept(layer: _BatchNorm, times: Tensor) -> Tensor:
    """What ``times`` groups leave of the statistics before them."""
    assert layer.momentum is not None
    kept: Tensor = (1.0 - layer.momentum) ** times
    return kept


@torch.no_grad()
def _put(layer: _BatchNorm, statistics: Tensor, count: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    mean, var = statistics.chunk(2)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    layer.num_batches_tracked.copy_(count)
