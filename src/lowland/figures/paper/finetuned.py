"""Runs that go on from the end of others, by ERM or by SAM: Figure 9, and the line between its networks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lowland.figures.paper.figure import Scale
from lowland.figures.paper.networks import SEEDS, network
from lowland.sweeps import Training

RHO = {"quick": 0.2, "small": 0.05, "paper": 0.1}
# The step size is the last one of the first part; ten times that at the smaller scales, whose few steps would
# move nothing.
_FURTHER: dict[Scale, dict[str, Any]] = {
    "quick": {"epochs": 20, "lr_max": 0.01},
    "small": {"epochs": 5, "lr_max": 0.01},
    "paper": {"epochs": 100, "lr_max": 0.001},
}


@dataclass(frozen=True)
class Four:
    """The four ways to the end of one seed, by what was done before and after the switch."""

    before: dict[str, Training]
    after: dict[str, Training]


def fine_tuned(scale: Scale) -> list[Four]:
    """Each seed's runs by ERM and SAM, and each of them continued by both."""
    found = []
    for seed in SEEDS[scale]:
        base = network(scale, seed=seed, **({"epochs": 1000} if scale == "paper" else {}))
        methods = {"ERM": base, "SAM": dataclasses.replace(base, sam_rho=RHO[scale])}
        before = {name: Training(config) for name, config in methods.items()}
        further = {
            name: dataclasses.replace(config, lr_schedule="constant", **_FURTHER[scale])
            for name, config in methods.items()
        }
        after = {
            f"{first} → {second}": Training(config, start)
            for first, start in before.items()
            for second, config in further.items()
        }
        found.append(Four(before, after))
    return found
