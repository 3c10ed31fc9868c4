"""The same random draws in both passes: torch's, NumPy's and Python's."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_numpy: Any = np.random
"""Its global generator, which is that of the users' own code."""


@dataclass(frozen=True)
class RandomState:
    """State of the default generators of torch, on the CPU and on the devices in use, of NumPy and of Python.

    Dropout draws from the first, augmentations often from the others; a generator that the loss brings along
    is the user's own to replay.
    """

    cpu: Tensor
    devices: tuple[tuple[torch.device, Tensor], ...]
    numpy: NumPyState
    python: Any

    @classmethod
    def capture(cls, devices: Iterable[torch.device]) -> RandomState:
        """The state now, of the CPU's generators and of torch's on ``devices``."""
        states = tuple(
            (d, torch.get_device_module(d).get_rng_state(d)) for d in devices if d.type not in {"cpu", "meta"}
        )
        return cls(torch.get_rng_state(), states, NumPyState.capture(), random.getstate())

    def restore(self) -> None:
        """Sets the generators back to this state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)
        self.numpy.restore()
        random.setstate(self.python)

    def drawn_from(self) -> str | None:
        """Whose generator beside torch's was drawn from since, ``"NumPy's"`` or ``"Python's"``."""
        if not self.numpy.is_now():
            return "NumPy's"
        return None if random.getstate() == self.python else "Python's"


def advance_generators() -> None:
    """One draw from each, so that what follows is another sequence."""
    torch.randint(2**62, (), device="cpu")
    _numpy.random_sample()
    random.random()


_BYTES = 2500
"""Of the state of a Mersenne twister: 624 words, and the position among them."""


@dataclass(frozen=True)
class NumPyState:
    """State of NumPy's global generator.

    To ask NumPy for it takes longer than a small layer; to see that it has not moved, by its bytes, does not.
    """

    generator: Any
    bytes: bytes | None
    state: Any

    @classmethod
    def capture(cls) -> NumPyState:
        """The state now."""
        global _last
        generator = _numpy.get_bit_generator()
        if _last is None or _last.generator is not generator or not _last.is_now():
            _last = cls(generator, _bytes(generator), _numpy.get_state(legacy=False))
        return _last

    def is_now(self) -> bool:
        """Whether the generator is in this state now, as far as its bytes tell."""
        if self.bytes is None or self.state["has_gauss"]:  # a number in store is not among its bytes
            return _same(_numpy.get_state(legacy=False), self.state)
        return _bytes(self.generator) == self.bytes

    def restore(self) -> None:
        """Sets the generator back to this state."""
        if not self.is_now():
            _numpy.set_state(self.state)


_last: NumPyState | None = None


def _bytes(generator: Any) -> bytes | None:
    if not isinstance(generator, np.random.MT19937):
        return None
    return ctypes.string_at(generator.ctypes.state_address, _BYTES)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))
