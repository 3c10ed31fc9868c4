"""The same random draws in both passes: torch's, NumPy's and Python's."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_numpy: Any = np.random
"""Its global generator, which is that of the users' own code."""

_python: Any = random._inst
"""The generator behind the functions of ``random``."""


@dataclass(frozen=True)
class RandomState:
    """State of the default generators of torch, on the CPU and on the devices in use, of NumPy and of Python.

    Dropout draws from the first, augmentations often from the others; a generator that the loss brings along
    is the user's own to replay.
    """

    cpu: Tensor
    devices: tuple[tuple[torch.device, Tensor], ...]
    numpy: TwisterState
    python: TwisterState

    @classmethod
    def capture(cls, devices: Iterable[torch.device]) -> RandomState:
        """The state now, of the CPU's generators and of torch's on ``devices``."""
        states = tuple(
            (d, torch.get_device_module(d).get_rng_state(d)) for d in devices if d.type not in {"cpu", "meta"}
        )
        return cls(torch.get_rng_state(), states, _OF_NUMPY.state(), _OF_PYTHON.state())

    def restore(self) -> None:
        """Sets the generators back to this state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)
        _OF_NUMPY.set(self.numpy)
        _OF_PYTHON.set(self.python)

    def is_now(self) -> bool:
        """Whether torch's generators stand here."""
        now = RandomState.capture(device for device, _ in self.devices)
        pairs = zip(self.devices, now.devices, strict=True)
        return torch.equal(now.cpu, self.cpu) and all(torch.equal(a, b) for (_, a), (_, b) in pairs)

    def drawn_from(self) -> str | None:
        """Whose generator beside torch's was drawn from since, ``"NumPy's"`` or ``"Python's"``."""
        if not _OF_NUMPY.is_in(self.numpy):
            return "NumPy's"
        return None if _OF_PYTHON.is_in(self.python) else "Python's"


def advance_generators() -> None:
    """One draw from each, so that what follows is another sequence."""
    torch.randint(2**62, (), device="cpu")
    _numpy.random_sample()
    random.random()


WORDS = 624
"""Words of a Mersenne twister; a position among them is the rest of its state."""


@dataclass(frozen=True)
class TwisterState:
    """State of a global generator, as its library gives it and takes it.

    Attributes:
        generator: What holds the bytes.
        bytes: Its bytes in memory; ``None`` where they are not known.
        gauss: A number in store, which is not among the bytes.
        state: The state.
    """

    generator: Any
    bytes: bytes | None
    gauss: Any
    state: Any


class _Twister:
    """A global generator, whose bytes tell in no time what asking for its state takes as long as a layer for.

    Args:
        get: Gives its state.
        put: Takes it.
        generator: Gives what holds its bytes: another one may be put in its place.
        address: Where these are, in memory; ``None`` where that is not known.
        gauss: Gives the number in store, from the state; ``None`` without one.
    """

    def __init__(
        self,
        get: Callable[[], Any],
        put: Callable[[Any], Any],
        generator: Callable[[], Any],
        address: Callable[[Any], int | None],
        gauss: Callable[[Any], Any],
    ) -> None:
        self._get, self._put, self._generator = get, put, generator
        self._address, self._gauss = address, gauss
        self._last: TwisterState | None = None
        self._memory: tuple[Any, Any] = (None, None)

    def state(self) -> TwisterState:
        """The state now."""
        if self._last is None or not self.is_in(self._last):
            state, generator = self._get(), self._generator()
            self._last = TwisterState(generator, self._bytes(generator), self._gauss(state), state)
        return self._last

    def is_in(self, state: TwisterState) -> bool:
        """Whether the generator is in this state now."""
        generator = self._generator()
        if state.bytes is None or state.gauss is not None:
            return _same(self._get(), state.state)
        return generator is state.generator and self._bytes(generator) == state.bytes

    def set(self, state: TwisterState) -> None:
        """Sets the generator back, if it has moved."""
        if not self.is_in(state):
            self._put(state.state)

    def _bytes(self, generator: Any) -> bytes | None:
        if self._memory[0] is not generator:
            address = self._address(generator)
            memory = None if address is None else (ctypes.c_char * (4 * WORDS + 4)).from_address(address)
            self._memory = generator, memory
        memory = self._memory[1]
        return None if memory is None else memory.raw


def _address_in_numpy(generator: Any) -> int | None:
    return int(generator.ctypes.state_address) if isinstance(generator, np.random.MT19937) else None


def _address_in_python(generator: Any) -> int | None:
    """Behind the head of the object, if this Python lays it out as it has for long: position, then words."""
    address = id(generator) + object.__basicsize__
    if type(generator).__basicsize__ < object.__basicsize__ + 4 * WORDS + 4:
        return None
    words = (ctypes.c_uint32 * (WORDS + 1)).from_address(address)
    return address if (*words[1:], words[0]) == generator.getstate()[1] else None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_same(a[key], b[key]) for key in a)
    return a == b if isinstance(a, tuple) else bool(np.array_equal(a, b))


_OF_NUMPY = _Twister(
    lambda: _numpy.get_state(legacy=False),
    lambda state: _numpy.set_state(state),
    lambda: _numpy.get_bit_generator(),
    _address_in_numpy,
    lambda state: state.get("gauss") if state.get("has_gauss") else None,
)
_OF_PYTHON = _Twister(
    random.getstate, random.setstate, lambda: _python, _address_in_python, lambda state: state[2]
)
