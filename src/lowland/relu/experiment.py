"""Runs of ERM and SAM with several seeds, and the files they leave."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from lowland.errors import InputError, one_of, require_at_most, require_default, require_finite
from lowland.relu.network import Network
from lowland.relu.problem import Array, Regression, on_the_line, teacher_student
from lowland.relu.training import Result, Schedule, StopOn, Training, train
from lowland.runs.threads import in_threads

Protocol = Literal["original", "consistent"]
Problem = Literal["maennel", "sine", "absolute", "step", "teacher-student"]
PROBLEMS = ("maennel", "sine", "absolute", "step", "teacher-student")

_AT_MOST = {
    "m": 10**6,
    "points": 10**6,
    "d": 10**4,
    "teachers": 10**6,
    "width": 10**6,
    "steps": 10**12,
    "batch": 10**6,
    "seeds": 10_000,
}


@dataclass(frozen=True)
class ReluConfig:
    """What to run: every radius with every seed.

    Attributes:
        rho: Lengths of the climb; 0 is ERM.
        protocol: original is the notebook's: where rho > 0, and only there, the step size falls and the
            perturbed loss says when to stop; consistent treats all runs alike, as schedule and stop_on say.
        m: Examples that share a climb; by default all of the step's.
        problem: maennel is the notebook's 12 points; sine, absolute and step are functions of one input;
            teacher-student has several inputs.
        points: Training examples; by default 12, and 20 for teacher-student.
        noise: Standard deviation of noise on the targets, for sine, absolute and step.
        d: Inputs, for teacher-student.
        teachers: The teacher's neurons, for teacher-student.
        width: The student's neurons.
        scale: Factor on the initialization; by default 1, and 0.03 for teacher-student.
        gamma: Step size; by default 5e-5, and 0.1 for teacher-student.
        steps: Most steps.
        batch: Examples of a step; by default all, and 1 for teacher-student.
        schedule: Of the step size, for the protocol consistent.
        stop_loss: Training ends when the loss is not larger; by default 1e-5 with the full batch, else never.
        stop_on: Which loss, for the protocol consistent.
        normalized: Climbs have length rho; otherwise they are rho times the gradient.
        seeds: Number of seeds; each draws its own initialization and order.
    """

    rho: tuple[float, ...] = (0.0, 0.3)
    protocol: Protocol = "original"
    m: int | None = None
    problem: Problem = "maennel"
    points: int | None = None
    noise: float = 0.0
    d: int = 3
    teachers: int = 3
    width: int = 100
    scale: float | None = None
    gamma: float | None = None
    steps: int = 1_000_001
    batch: int | None = None
    schedule: Schedule = "linear"
    stop_loss: float | None = None
    stop_on: StopOn = "unperturbed"
    normalized: bool = True
    seeds: int = 5

    def __post_init__(self) -> None:
        """Refuses options that nothing would read, and numbers beyond any machine."""
        require_at_most(self, _AT_MOST)
        require_finite(self)
        one_of("problem", self.problem, PROBLEMS)
        one_of("protocol", self.protocol, ("original", "consistent"))
        if self.has_teacher:
            require_default(self, ("noise",), "for teacher-student")
        else:
            require_default(self, ("d", "teachers"), f"for {self.problem}")
        if self.protocol == "original":
            require_default(self, ("schedule", "stop_on"), "for the protocol original")
        if not any(rho > 0 for rho in self.rho):
            require_default(self, ("m", "normalized"), "where nothing climbs")
        if self.seeds < 1:
            raise InputError(f"seeds must be positive, got {self.seeds}.")
        if not self.rho:
            raise InputError("rho must be at least one number, got none.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"command": "relu"} | asdict(self) | {"rho": list(self.rho)}

    @property
    def has_teacher(self) -> bool:
        """Whether the targets are those of another network."""
        return self.problem == "teacher-student"

    def data(self) -> Regression:
        """The training data, the same for all seeds."""
        one_of("problem", self.problem, PROBLEMS)
        if self.has_teacher:
            return teacher_student(
                n=20 if self.points is None else self.points, d=self.d, teachers=self.teachers
            )
        points = 12 if self.points is None else self.points
        return on_the_line(self.problem, points=points, noise=self.noise)  # type: ignore[arg-type]

    def training(self, rho: float) -> Training:
        """How a run of one radius goes."""
        batch = 1 if self.batch is None and self.has_teacher else self.batch
        training = Training(
            rho=rho,
            m=self.m if rho > 0.0 else None,
            gamma=(0.1 if self.has_teacher else 5e-5) if self.gamma is None else self.gamma,
            schedule=self.schedule,
            steps=self.steps,
            batch=batch,
            normalized=self.normalized,
            stop_loss=(1e-5 if batch is None else 0.0) if self.stop_loss is None else self.stop_loss,
            stop_on=self.stop_on,
        )
        if self.protocol == "consistent":
            return training
        original = Training.original(rho)
        return replace(training, schedule=original.schedule, stop_on=original.stop_on)


@dataclass(frozen=True)
class Outcome:
    """One run of an experiment."""

    seed: int
    training: Training
    problem: Regression
    start: Network
    result: Result

    @property
    def label(self) -> str:
        """ERM, or what climbs together and how far."""
        if self.training.rho == 0.0:
            return "ERM"
        together = self.training.m or self.training.batch
        return f"{'n' if together is None else together}-SAM, ρ = {self.training.rho:g}"

    def row(self) -> dict[str, Any]:
        """Its numbers: losses, norms, and kinks if there is one input, or features."""
        network, problem, result = self.result.network, self.problem, self.result
        loss = result.final_loss(problem)
        row: dict[str, Any] = {
            "run": self.label,
            "seed": self.seed,
            "steps": result.steps,
            "loss": loss,
            "perturbed_loss": float(result.perturbed_loss[-1]),
            "test_loss": result.test_loss(problem),
            "diverged": not bool(np.isfinite(loss)),
            "norm_a": network.norms()[0],
            "norm_w": network.norms()[1],
        }
        if row["diverged"]:
            return row
        if problem.d == 1:
            low, high = float(problem.x.min()), float(problem.x.max())
            row["slope_variation"] = network.slope_variation(low, high)
            row["active_kinks"] = network.active_kinks(low, high)
        row["rank"], row["alive"], row["distinct"] = network.features(problem)
        return row

    def tables(self) -> dict[str, dict[str, Array]]:
        """``result``: its losses; ``weights``: its weights."""
        result, network = self.result, self.result.network
        losses = {
            "iteration": result.iterations,
            "loss": result.loss,
            "perturbed_loss": result.perturbed_loss,
        }
        inputs = {f"w{k}": row for k, row in enumerate(network.w)}
        weights = {"neuron": np.arange(len(network.a)), "a": network.a, "b": network.b} | inputs
        return {"result": losses, "weights": weights}


def conduct(
    config: ReluConfig,
    *,
    threads: int | None = None,
    on_done: Callable[[int], object] | None = None,
    on_wait: Callable[[], object] | None = None,
) -> list[Outcome]:
    """Runs everything that ``config`` says, several at a time, radius by radius in the result.

    Args:
        config: What to run.
        threads: Runs at a time; ``None`` for one per core. The result does not depend on it.
        on_done: Called with a run's index as soon as it has ended.
        on_wait: Called several times a second; an exception that it raises ends this.

    Raises:
        InputError: If an option is out of its range.
    """
    jobs = planned(config)
    todo = [functools.partial(_outcome, *job) for job in jobs]
    return in_threads(todo, threads=threads, on_done=on_done, on_wait=on_wait)


def planned(config: ReluConfig) -> list[tuple[int, Training, Regression, Network]]:
    """Seed, training, data and start of every run.

    Raises:
        InputError: If an option is out of its range.
    """
    data = config.data()
    scale = (0.03 if config.has_teacher else 1.0) if config.scale is None else config.scale
    starts = [
        Network.initialized(width=config.width, d=data.d, scale=scale, seed=seed)
        for seed in range(config.seeds)
    ]
    trainings = [config.training(rho) for rho in config.rho]
    for training in trainings:
        size = training.examples_per_step(data.n)
        if training.m is not None and training.m > size:
            raise InputError(f"m must be at most the {size} examples of a step, got {training.m}.")
    return [(seed, training, data, start) for training in trainings for seed, start in enumerate(starts)]


def _outcome(seed: int, training: Training, problem: Regression, start: Network) -> Outcome:
    return Outcome(seed, training, problem, start, train(problem, training, start=start, seed=seed))
