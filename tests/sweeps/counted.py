"""Tasks that do little, for tests of what carries them out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from lowland.deep import Interrupted
from lowland.errors import InputError
from lowland.runs import Run, config_hash
from lowland.sweeps import How, Store, Task


@dataclass(frozen=True)
class Counted:
    """Writes a row per step; can be stopped, fail, or end its process."""

    label: str
    steps: int = 3
    ends: str = "well"
    after: tuple[Counted, ...] = ()
    pause: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.label}-{config_hash(self.describe())}"

    @property
    def needs(self) -> tuple[Task, ...]:
        return self.after

    def describe(self) -> dict[str, Any]:
        return {"command": "counted", "label": self.label, "after": [task.name for task in self.after]}

    def cost(self) -> float:
        return float(self.steps)

    def carry_out(self, store: Store, how: How) -> None:
        run = Run.create(store.run(self).path, self.describe(), {"process": os.getpid()})
        for needed in self.after:
            assert store.has(needed)
        begun = len(run.rows())
        for step in range(begun, self.steps):
            if how.should_stop():
                raise Interrupted
            run.append({"step": step, "process": os.getpid(), "threads": how.place.threads})
            how.on_progress((step + 1) / self.steps)
            if self.ends == "killed once" and begun == 0 and step == self.steps // 2:
                os.kill(os.getpid(), 9)
            time.sleep(self.pause)
        if self.ends == "wrong":
            raise InputError("steps must be good ones, got bad ones.")
        if self.ends == "broken":
            raise ZeroDivisionError("no steps")
        if self.ends == "killed":
            os.kill(os.getpid(), 9)
        run.finish({"steps": self.steps})


class Heard:
    """Keeps what a watch is told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.shares: dict[str, list[float]] = {}
        self.ended: dict[str, str | None] = {}

    def on_start(self, task: Task) -> None:
        self.started.append(task.name)

    def on_progress(self, task: Task, share: float) -> None:
        self.shares.setdefault(task.name, []).append(share)

    def on_end(self, task: Task, failure: str | None, seconds: float) -> None:
        assert seconds >= 0.0
        self.ended[task.name] = failure
