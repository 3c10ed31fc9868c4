"""A training run of a deep network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lowland.deep import Control, TrainConfig, TrainState, launch, run_name
from lowland.deep.functions import on_path
from lowland.sweeps.cost import seconds_of_training
from lowland.sweeps.task import How, Store, Task

_CHECKPOINT_EVERY = 60.0


@dataclass(frozen=True)
class Training:
    """A training run, from fresh weights or from those at the end of another.

    Attributes:
        config: The run.
        start: Whose final weights it begins with.

    Example:
        >>> from lowland.deep import TrainConfig
        >>> from lowland.sweeps import Training
        >>> erm = Training(TrainConfig(model="fc"))
        >>> further = Training(TrainConfig(model="fc", sam_rho=0.1), start=erm)
        >>> further.needs == (erm,), further.describe()["model_path"] == erm.name
        (True, True)
    """

    config: TrainConfig
    start: Training | None = None

    @property
    def name(self) -> str:
        """As ``lowland train`` names it."""
        return run_name(self._named())

    @property
    def needs(self) -> tuple[Task, ...]:
        """The run that it begins with."""
        return () if self.start is None else (self.start,)

    def describe(self) -> dict[str, Any]:
        """The config; ``model_path`` is the name of the run that it begins with."""
        return self._named().to_dict()

    def cost(self) -> float:
        """The estimated seconds on one core."""
        return seconds_of_training(self.config)

    def carry_out(self, store: Store, how: How) -> None:
        """Trains. The run that it begins with is found by its name, beside its own."""
        if how.place.directory is not None:  # a worker's own may be another
            on_path(how.place.directory)
        control = Control(_Share(self.config.epochs, how), _CHECKPOINT_EVERY, how.should_stop)
        launch(self._named(), store.run(self).path, how.place, control)

    def _named(self) -> TrainConfig:
        return self.config if self.start is None else replace(self.config, model_path=self.start.name)


class _Share:
    """Tells how much of a run is done."""

    def __init__(self, epochs: int, how: How) -> None:
        self._epochs, self._how = epochs, how

    def on_step(self, state: TrainState) -> None:
        """After each step."""
        steps = state.steps_per_epoch
        self._how.on_progress(((state.epoch - 1) * steps + state.iteration) / (self._epochs * steps))

    def on_row(self, row: dict[str, Any]) -> None:
        """Rows are in the run's own file."""
