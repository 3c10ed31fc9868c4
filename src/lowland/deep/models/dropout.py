"""Dropout whose masks are a function of the example, and not of a generator's state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn

_GOLDEN = 0x9E3779B97F4A7C15
_LAYER = 0xD1342543DE82EF95
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass
class _Pass:
    """One forward pass: the keys of its examples, and how many dropout layers it has gone through."""

    keys: Tensor
    layers: int = 0


_now: ContextVar[_Pass | None] = ContextVar("_now", default=None)


class Dropout(nn.Dropout):
    """Dropout, drawn inside :func:`masks_of` by hashing the example's key, the layer and the element's place.

    So the mask of an example is the same wherever it is trained, in whatever company, and nothing is drawn
    from a generator. Outside that block, and for tensors without a row for each example, it is
    :class:`torch.nn.Dropout`.

    Its arguments are those of :class:`torch.nn.Dropout`; masks that are hashed make a new tensor, also
    ``inplace``.

    Example:
        >>> import torch
        >>> from lowland.deep.models import Dropout, example_keys, masks_of
        >>> layer, x = Dropout(0.5), torch.ones(4, 6)
        >>> keys = example_keys(7, torch.arange(4))
        >>> with masks_of(keys):
        ...     whole = layer(x)
        >>> with masks_of(keys[2:]):
        ...     part = layer(x[2:])
        >>> torch.equal(whole[2:], part), whole.unique().tolist()
        (True, [0.0, 2.0])
    """

    def forward(self, input: Tensor) -> Tensor:
        """What is left of ``input``, scaled so that its expectation is what it was."""
        now = _now.get()
        if not self.training or self.p == 0.0 or now is None or len(input) != len(now.keys):
            return super().forward(input)
        now.layers += 1
        if self.p == 1.0:
            return input * 0.0
        keys = _mixed(now.keys ^ _signed(now.layers * _LAYER))
        return input * (_kept(keys, input.shape[1:], self.p).to(input.dtype) * (1.0 / (1.0 - self.p)))


def example_keys(seed: int, positions: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """Keys of the examples at these positions of a batch.

    Args:
        seed: Of the batch, at most 63 bits.
        positions: Where the examples stand in it.

    Returns:
        A key for each.

    Example:
        >>> import torch
        >>> from lowland.deep.models import example_keys
        >>> keys = example_keys(7, torch.arange(1000))
        >>> torch.equal(example_keys(7, torch.arange(500, 510)), keys[500:510]), len(keys.unique())
        (True, 1000)
    """
    return _mixed((positions + 1) * _signed(_GOLDEN) + seed)


@contextmanager
def masks_of(keys: Int64[Tensor, "n"]) -> Iterator[None]:
    """Inside the block, which is one forward pass, :class:`Dropout` draws for the examples of these keys.

    Args:
        keys: One for each example.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from lowland.deep.models import Dropout, example_keys, masks_of
        >>> layer, keys = Dropout(0.5), example_keys(7, torch.arange(3))
        >>> with masks_of(keys):
        ...     first = layer(torch.ones(3, 8))
        >>> with masks_of(keys):
        ...     again = layer(torch.ones(3, 8))
        >>> torch.equal(first, again)
        True
    """
    token = _now.set(_Pass(keys))
    try:
        yield
    finally:
        _now.reset(token)


def _kept(keys: Tensor, shape: torch.Size, p: float) -> Tensor:
    """Which elements of each example are kept: those whose hash is among the lowest ``1 - p`` of all."""
    places = torch.arange(shape.numel(), device=keys.device).view(shape) * _signed(_GOLDEN)
    hashes = _scrambled(keys.view(-1, *[1] * len(shape)) + places)
    return hashes <= min(round((1.0 - p) * 2**64), 2**64) - 2**63 - 1


def _scrambled(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele et al., 2014) but for its last shift, of low bits."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(_FIRST)  # shifts of signed numbers drag the sign along
    return (z ^ ((z >> 27) & (2**37 - 1))) * _signed(_SECOND)


def _mixed(z: Tensor) -> Tensor:
    z = _scrambled(z)
    return z ^ ((z >> 31) & (2**33 - 1))


def _signed(bits: int) -> int:
    """The number that these 64 bits are in two's complement."""
    bits %= 2**64
    return bits - 2**64 if bits >= 2**63 else bits
