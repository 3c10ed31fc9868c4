"""What traps are made of: six examples, and small modules whose loss is the mean square of their output."""

import torch
from torch import nn

from ...naive import seeded, tensors
from ..models import Through

B = 6


def vectors(seed=1, width=4, examples=B):
    return tensors(seed, (examples, width))[0]


def images(size=4):
    return tensors(2, (B, 2, size, size))[0]


def sequences(length=3):
    return tensors(3, (B, length, 4))[0]


def words(length=3):
    return torch.randint(0, 6, (B, length), generator=torch.Generator().manual_seed(4))


def squared(module, *batch):
    """The mean square of the module's output."""
    module = seeded(module)
    return module, lambda *batch: module(*batch).square().mean(), batch


def two_layers(forward, *, examples=B, **members):
    """A module of two linear layers, and what else ``forward`` needs."""
    buffers = {n: t for n, t in members.items() if type(t) is torch.Tensor}
    layers = {n: t for n, t in members.items() if n not in buffers}
    module = Through(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3), **layers)
    module, loss, batch = squared(module, vectors(examples=examples))
    for name, buffer in buffers.items():
        module.register_buffer(name, buffer)
    return module, loss, batch


def plain(s, x):
    return s.b(s.a(x).tanh())


def normed(forward=lambda s, x: s.b(s.n(s.a(x)).tanh()), **options):
    """Two layers with batch norm between them."""
    return two_layers(forward, n=nn.BatchNorm1d(4, **options))
