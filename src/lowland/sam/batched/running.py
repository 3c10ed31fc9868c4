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
    kept, shares = 1.0, []
    for _ in found[0][0]:
        for _, momentum in reversed(found):
            shares.append(kept * momentum)
            kept *= 1.0 - momentum
    in_turn = torch.stack([statistics for statistics, _ in found], 1).flatten(0, 1).to(running.dtype)
    weights = torch.tensor(shares[::-1], dtype=running.dtype).to(running.device)
    running.mul_(kept).add_(weights @ in_turn)
