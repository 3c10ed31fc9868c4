"""Runs of the small models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowland.diagonal import experiment as diagonal
from lowland.diagonal import theorem2
from lowland.diagonal.experiment import DiagonalConfig
from lowland.diagonal.theorem2 import Theorem2Config
from lowland.relu import experiment as relu
from lowland.relu.experiment import ReluConfig
from lowland.runs import Run, config_hash, describe_environment, write_results
from lowland.sweeps.cost import seconds_of_simulation
from lowland.sweeps.task import How, Store, Task


@dataclass(frozen=True)
class Simulation:
    """All runs of one experiment on diagonal networks, ReLU networks or quadratics.

    Attributes:
        config: The experiment.

    Example:
        >>> from lowland.diagonal.experiment import DiagonalConfig
        >>> from lowland.sweeps import Simulation
        >>> Simulation(DiagonalConfig(methods=("gd",), steps=100)).name.startswith("diagonal-")
        True
    """

    config: DiagonalConfig | ReluConfig | Theorem2Config

    @property
    def name(self) -> str:
        """As the command of the experiment names it."""
        described = self.describe()
        return f"{described['command']}-{config_hash(described)}"

    @property
    def needs(self) -> tuple[Task, ...]:
        """Nothing."""
        return ()

    def describe(self) -> dict[str, Any]:
        """The config, with the command that runs it."""
        return self.config.to_dict()

    def cost(self) -> float:
        """The estimated seconds on one core."""
        return seconds_of_simulation(self.config)

    def carry_out(self, store: Store, how: How) -> None:
        """Runs the experiment; one that was stopped begins again."""
        run = Run.create(store.run(self).path, self.describe(), describe_environment())
        with run.locked():
            write_results(run, self._conducted(how))

    def _conducted(self, how: How) -> list[Any]:
        config, done = self.config, 0

        def on_done(_: int) -> None:
            nonlocal done
            done += 1
            how.on_progress(min(1.0, done / self._count()))

        told: dict[str, Any] = {"on_done": on_done, "on_wait": how.heed}
        outcomes: list[Any]
        if isinstance(config, DiagonalConfig):
            outcomes = diagonal.conduct(config, threads=how.place.threads, **told)
        elif isinstance(config, ReluConfig):
            outcomes = relu.conduct(config, threads=how.place.threads, **told)
        else:
            outcomes = theorem2.conduct(config, **told)
        return outcomes

    def _count(self) -> int:
        """How many small runs it has."""
        config = self.config
        if isinstance(config, DiagonalConfig):
            return len(diagonal.planned(config))
        return len(relu.planned(config)) if isinstance(config, ReluConfig) else 2 * len(config.m)
