"""Random numbers that are not replayed."""

from __future__ import annotations

import torch
import torch.distributed as dist


class Noise:
    """Generators of random perturbations and of stochastic rounding, one per device.

    The passes of a group replay the draws of the default generators, so what perturbs the weights has
    its own: seeded from the CPU's default generator, which is thereby advanced by one draw.

    Args:
        seed: Seed of all of them.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._made = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    @classmethod
    def draw(
        cls, process_group: dist.ProcessGroup | None = None, device: torch.device | None = None
    ) -> Noise:
        """Noise with a seed from the CPU's default generator.

        Ranks that climb together must perturb alike: those of a ``process_group`` draw one each, and all take
        the largest, which they send each other from ``device``.
        """
        seed = torch.randint(2**62, (), device="cpu")
        if process_group is not None:
            seed = seed.to(device)
            dist.all_reduce(seed, dist.ReduceOp.MAX, group=process_group)
        return cls(int(seed.item()))

    def next(self) -> Noise:
        """Other noise at each call."""
        self._made += 1
        return self.of(self._made)

    def of(self, key: int) -> Noise:
        """Other noise, the same for the same key."""
        return Noise(_mixed(self._seed, key))

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator for tensors on ``device``; each call continues where the last one stopped."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _mixed(seed: int, key: int) -> int:
    """A seed for each key (splitmix64; Steele, Lea and Flood, 2014)."""
    z = (seed + (key + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return (z ^ z >> 31) % 2**63
