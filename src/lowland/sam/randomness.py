"""The same random draws in both passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the default generators of the CPU and of the devices in use.

    Dropout draws from these; a generator that the loss brings along is the user's own to replay.
    """

    cpu: Tensor
    devices: tuple[tuple[torch.device, Tensor], ...]

    @classmethod
    def capture(cls, devices: Iterable[torch.device]) -> RandomState:
        """The state now, of the CPU's generator and of those of ``devices``."""
        states = tuple(
            (d, torch.get_device_module(d).get_rng_state(d)) for d in devices if d.type not in {"cpu", "meta"}
        )
        return cls(torch.get_rng_state(), states)

    def restore(self) -> None:
        """Sets the generators back to this state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)
