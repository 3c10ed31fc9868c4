"""Models that tests shard, whole here, and what is counted of them. Imports nothing of lowland."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ..naive import seeded, tensors

VOCABULARY, WIDTH, LENGTH = 11, 8, 5


class Block(nn.Module):
    """Causal attention and a network of one hidden layer."""

    def __init__(self, dropout):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        q, k, v = (
            t.unflatten(-1, (2, -1)).transpose(-3, -2) for t in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2).flatten(-2)
        x = x + self.dropout(self.out(attended))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """A language model of two blocks, which are two units of FSDP beside the root's."""

    def __init__(self, tied=False, dropout=0.0, recomputes=False):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.recomputes = recomputes
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x):
        h = self.tokens(x) + self.places
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if self.recomputes else block(h)
        return self.head(self.norm(h))


def gpt(**options):
    return seeded(GPT(**options))


def uneven(seed=0):
    """Of odd sizes, some smaller than the number of ranks: shards differ, and some are empty."""
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 3)]
    return seeded(nn.Sequential(*layers), seed)


def normalized():
    """With batch norm, whose buffers every rank has whole."""
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 3, 3)]
    return seeded(nn.Sequential(*layers, nn.Flatten(), nn.Linear(27, 3)))


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank beside it."""

    def __init__(self, width_in, width_out):
        super().__init__()
        self.layer = nn.Linear(width_in, width_out).requires_grad_(False)
        self.a, self.b = nn.Linear(width_in, 2, bias=False), nn.Linear(2, width_out, bias=False)

    def forward(self, x):
        return self.layer(x) + self.b(self.a(x))


def adapted():
    return seeded(nn.Sequential(Adapted(4, 6), nn.Tanh(), Adapted(6, 3)))


def likelihood(model, x, y):
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def sentences(seed, examples=6):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (examples, LENGTH + 1), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def images(seed, examples=6):
    return tuple(tensors(seed, (examples, 2, 5, 5), (examples, 3)))


def sharded(model, mesh, **options):
    """The model in units: blocks or layers, and the rest of it."""
    parts = [*model.blocks] if isinstance(model, GPT) else [m for m in model if [*m.parameters()]]
    for part in parts:
        fully_shard(part, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return model


def shards(model):
    return [p.to_local().clone() for p in model.parameters()]


def whole(model, gradients=False):
    """The parameters of all ranks together, or their gradients."""
    each = [p.grad if gradients else p for p in model.parameters()]
    return [None if t is None else t.detach().full_tensor() for t in each]


def gathered_bytes(model, all_units=False):
    """Bytes of the parameters that are gathered, and of gradients that are not reduced; of all parameters."""
    kept = [k for m in model.modules() for g in groups_of(m) for k in g.fsdp_params]
    params = [k._unsharded_param for k in kept if hasattr(k, "_unsharded_param")]
    if all_units:
        return sum(p.numel() * p.element_size() for p in params)
    grads = [p.grad for p in params if p.grad is not None]
    return sum(t.untyped_storage().size() for t in (*params, *grads))


def groups_of(module):
    return module._get_fsdp_state()._fsdp_param_groups if hasattr(module, "_get_fsdp_state") else []


@dataclass
class Seen:
    """How often each collective is called, what bytes this rank gives it, the most that is gathered then."""

    calls: Counter = field(default_factory=Counter)
    size: Counter = field(default_factory=Counter)
    most_gathered: int = 0


@contextmanager
def collectives(model):
    """What is called in the block."""
    seen = Seen()
    names = "all_gather_single", "reduce_scatter_single", "all_reduce"
    real = {name: getattr(dist, name) for name in names}

    def counted(name, *args, **kwargs):
        own = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)][-1]  # after the output
        seen.calls[name] += 1
        seen.size[name] += own.numel() * own.element_size()
        seen.most_gathered = max(seen.most_gathered, gathered_bytes(model))
        return real[name](*args, **kwargs)

    for name in real:
        setattr(dist, name, partial(counted, name))
    try:
        yield seen
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
