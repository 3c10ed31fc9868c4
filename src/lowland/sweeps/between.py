"""The loss on the line through two trained networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lowland.deep.loading import load_subject
from lowland.deep.records import PointRow
from lowland.deep.scenery import scenery
from lowland.deep.subject import SubjectOptions
from lowland.deep.view import SceneryConfig
from lowland.runs import Run, config_hash, describe_environment
from lowland.sweeps.cost import seconds_of_line
from lowland.sweeps.task import How, Store, Task
from lowland.sweeps.training import Training


@dataclass(frozen=True)
class Between:
    """Loss and error on the line through two networks, at t = 0 and t = 1, and beyond.

    Attributes:
        a: The run whose final weights are at t = 0.
        b: The run whose final weights are at t = 1.
        config: Which part of the line.

    Example:
        >>> from lowland.deep import TrainConfig
        >>> from lowland.deep.view import SceneryConfig
        >>> from lowland.sweeps import Between, Training
        >>> erm, sam = (Training(TrainConfig(model="fc", sam_rho=rho)) for rho in (0.0, 0.1))
        >>> line = Between(erm, sam, SceneryConfig(points=5))
        >>> line.name.startswith("landscape-"), line.needs == (erm, sam)
        (True, True)
    """

    a: Training
    b: Training
    config: SceneryConfig

    @property
    def name(self) -> str:
        """Ends in the hash of both runs' configs and of the view's."""
        return f"landscape-{config_hash(self.describe())}"

    @property
    def needs(self) -> tuple[Task, ...]:
        """Both runs."""
        return (self.a, self.b)

    def describe(self) -> dict[str, Any]:
        """The view, and the names of both runs."""
        return {"command": "landscape", "networks": [self.a.name, self.b.name], **asdict(self.config)}

    def cost(self) -> float:
        """The estimated seconds on one core."""
        return seconds_of_line(self.a.config, self.config)

    def carry_out(self, store: Store, how: How) -> None:
        """Evaluates every point of the line that is not in the run yet."""
        run = Run.create(store.run(self).path, self.describe(), describe_environment())
        options = SubjectOptions(data_dir=how.place.data_dir, device=how.place.device)
        done = 0

        def on_point() -> None:
            nonlocal done
            done += 1
            how.on_progress(min(1.0, done / self.config.points))
            how.heed()

        with run.locked():
            networks = {
                x: load_subject(str(store.run(t).path), options) for x, t in (("a", self.a), ("b", self.b))
            }
            rows = run.rows(PointRow)
            run.keep_rows(len(rows))
            seen = scenery(
                networks,
                self.config,
                known=[{"path": "line"} | row for row in rows],
                on_row=lambda row: run.append({k: v for k, v in row.items() if k != "path"}),
                on_point=on_point,
            )
            run.finish({"distances": seen.distances})
