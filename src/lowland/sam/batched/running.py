"""Running statistics, as the groups would move them one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def track(running: Tensor, found: Sequence[tuple[Tensor, float]]) -> None:
    r"""Moves ``running`` by each group's statistics in turn: :math:`r \leftarrow (1 - \mu) r + \mu s_S`.

    Args:
        running: The running statistic, shape ``(channels,)``.
        found: Of every time that the layer ran: its statistics, shape ``(groups, channels)``, and the
            momentum :math:`\mu`.
    """
    kept = running.new_ones((), dtype=torch.float64)
    total = torch.zeros_like(running)
    groups = len(found[0][0])
    for group in reversed(range(groups)):
        for statistics, momentum in reversed(found):
            total += (kept * momentum).to(running.dtype) * statistics[group].to(running.dtype)
            kept = kept * (1.0 - momentum)
    running.mul_(kept.to(running.dtype)).add_(total)
