"""Measures of flatness of a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowland.deep.flatness import FlatnessConfig
from lowland.deep.loading import load_subject
from lowland.deep.measures import measures
from lowland.deep.records import MeasureRow
from lowland.deep.subject import SubjectOptions
from lowland.runs import Run, config_hash, describe_environment
from lowland.sweeps.cost import seconds_of_measures
from lowland.sweeps.task import How, Store, Task
from lowland.sweeps.training import Training


@dataclass(frozen=True)
class Measured:
    """Measures of flatness of the weights at the end of a training run.

    Attributes:
        of: The run.
        config: Which measures.

    Example:
        >>> from lowland.deep import TrainConfig
        >>> from lowland.deep.flatness import FlatnessConfig
        >>> from lowland.sweeps import Measured, Training
        >>> network = Training(TrainConfig(model="fc"))
        >>> task = Measured(network, FlatnessConfig(rho=(0.1,), m=(16,)))
        >>> task.name.startswith("sharpness-"), task.needs == (network,)
        (True, True)
    """

    of: Training
    config: FlatnessConfig

    @property
    def name(self) -> str:
        """Ends in the hash of the run's config and the measures'."""
        return f"sharpness-{config_hash(self.describe())}"

    @property
    def needs(self) -> tuple[Task, ...]:
        """The run."""
        return (self.of,)

    def describe(self) -> dict[str, Any]:
        """The measures, and the name of the run."""
        return {"command": "sharpness", "network": self.of.name, **self.config.described()}

    def cost(self) -> float:
        """The estimated seconds on one core."""
        return seconds_of_measures(self.of.config, self.config)

    def carry_out(self, store: Store, how: How) -> None:
        """Measures what is not in the run yet."""
        run = Run.create(store.run(self).path, self.describe(), describe_environment())
        options = SubjectOptions(data_dir=how.place.data_dir, device=how.place.device)
        with run.locked():
            subject = load_subject(str(store.run(self.of).path), options)
            rows = run.rows(MeasureRow)
            run.keep_rows(len(rows))

            def keep(row: dict[str, Any]) -> None:
                run.append(row)
                how.heed()

            def on_progress(_: str, share: float) -> None:
                how.on_progress(share)
                how.heed()

            taken = measures(subject, self.config, known=rows, on_row=keep, on_progress=on_progress)
            run.finish({"runs": taken.rows})
