"""A small GPT, cut by ``fully_shard`` into one unit for each block and one for all the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of a GPT; ``tokens`` are those of an example."""

    blocks: int
    width: int
    tokens: int
    heads: int = 4
    vocabulary: int = 256


class Block(nn.Module):
    """Causal attention and a perceptron, each beside a skip connection."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, self._heads = sizes.width, sizes.heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for t in self.qkv(self.before_attention(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_mlp(x))))


class GPT(nn.Module):
    """Logits of the next token, for each token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.of_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.of_places = nn.Parameter(0.02 * torch.randn(sizes.tokens, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.of_tokens(ids) + self.of_places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def sharded(sizes: Sizes, mesh: DeviceMesh, **options: Any) -> GPT:
    """A GPT of the same weights on all ranks, each of which keeps its shards."""
    torch.manual_seed(0)
    model = GPT(sizes)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def loss_of(model: GPT) -> Loss:
    """The mean loss of the next tokens."""

    def loss(ids: Tensor, following: Tensor) -> Tensor:
        return F.cross_entropy(model(ids).flatten(0, 1), following.flatten())

    return loss


def batch_of(sizes: Sizes, examples: int, rank: int) -> tuple[Tensor, Tensor]:
    """Random tokens of a rank, and those that follow."""
    drawn = torch.Generator().manual_seed(1 + rank)
    ids = torch.randint(sizes.vocabulary, (examples, sizes.tokens + 1), generator=drawn)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
