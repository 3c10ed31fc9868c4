"""Runs of several methods, radii and seeds, and the files they leave."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowland.diagonal.dynamics import Convention, Kernel, Method, Phase, Plan, Result
from lowland.diagonal.problem import Array, Problem, Stream, sparse_regression
from lowland.diagonal.theory import Comparison, compare
from lowland.errors import InputError, one_of, require_at_most, require_default, require_finite
from lowland.runs import read_arrays
from lowland.runs.threads import in_threads

_AT_MOST = {
    "m": 10**6,
    "steps": 10**12,
    "seeds": 10_000,
    "n": 10**6,
    "d": 10**6,
    "sparsity": 10**6,
    "n_test": 10**7,
}


@dataclass(frozen=True)
class DiagonalConfig:
    r"""What to run: every method at every radius, or the given phases, with every seed.

    Attributes:
        methods: Of gd, sgd, n-sam, 1-sam, m-sam.
        rho: Radii of the methods that climb: what a group's gradient is multiplied with.
        m: Examples in a group, for m-sam.
        gamma: Step size; by default 5/d, as in the original's first cells.
        steps: Number of steps.
        alpha: Initialization, u = alpha and v = 0.
        balanced: Take alpha as that of w+ = w- = alpha instead: u = 2 alpha.
        phases: Runs in place of methods and radii, each METHOD:GAMMA:STEPS[:RHO[:M]] or several of these
            joined by +, as gd:0.033:10001+1-sam:0.033:10001:10.
        rho_convention: original has 1-SAM climb along the gradient of the square, not of half of it: twice as
            far.
        normalized: Climbs have length rho.
        derivative_only: Only the residuals see the perturbed weights.
        normalized_step: Steps have length gamma.
        weight_decay: Factor on the weights, added to the gradient.
        balance: Factor on the gradient of 1/4 |u^2 - v^2|^2, added.
        thresholds: Training losses below which the step size is halved, falling.
        kernel: algebraic is faster for plain GD, n-SAM and 1-SAM, and differs in the last digits.
        theory: Compare each run with Theorem 1.
        seeds: Number of seeds; each draws its own data (unless they are given) and its own order of SGD.
        n: Training examples.
        d: Features.
        sparsity: Coefficients that are not zero.
        n_test: Test examples.
        scaling: Feature j is multiplied by (j + 1) to the power -scaling.
        label_noise: Standard deviation of noise on the training targets.
        stream: Of the draws; legacy with seed 0 gives the original's data.
        data: An .npz file with X and y, and X_test and y_test if there is a test set.
    """

    methods: tuple[Method, ...] = ("gd", "n-sam", "1-sam")
    rho: tuple[float, ...] = (0.01, 0.03, 0.1)
    m: int | None = None
    gamma: float | None = None
    steps: int = 10_001
    alpha: float = 0.1
    balanced: bool = False
    phases: tuple[str, ...] = ()
    rho_convention: Convention = "consistent"
    normalized: bool = False
    derivative_only: bool = False
    normalized_step: bool = False
    weight_decay: float = 0.0
    balance: float = 0.0
    thresholds: tuple[float, ...] = ()
    kernel: Kernel = "in order"
    theory: bool = False
    seeds: int = 1
    n: int = 20
    d: int = 30
    sparsity: int = 3
    n_test: int = 1000
    scaling: float = 0.0
    label_noise: float = 0.0
    stream: Stream = "legacy"
    data: Path | None = None

    def __post_init__(self) -> None:
        """Refuses options that nothing would read, and numbers beyond any machine."""
        require_at_most(self, _AT_MOST)
        require_finite(self)
        if self.data is not None:
            drawn = ("n", "d", "sparsity", "n_test", "scaling", "label_noise", "stream")
            require_default(self, drawn, "where the data are given")
        if self.phases:
            require_default(self, ("methods", "rho", "m", "gamma", "steps"), "where phases say it")
        elif ("m-sam" in self.methods) != (self.m is not None):
            raise InputError(f"m must be given for m-sam and only for it, got {self.m} for {self.methods}.")
        if self.seeds < 1:
            raise InputError(f"seeds must be positive, got {self.seeds}.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"command": "diagonal"} | fields | {"data": None if self.data is None else str(self.data)}

    def problem(self, seed: int) -> Problem:
        """The data of one seed."""
        if self.data is not None:
            return _stored(self.data)
        return sparse_regression(
            seed=seed,
            n=self.n,
            d=self.d,
            sparsity=self.sparsity,
            n_test=self.n_test,
            scaling=self.scaling,
            label_noise=self.label_noise,
            stream=self.stream,
        )

    def plans(self, seed: int, d: int) -> list[Plan]:
        """What to run with one seed, on ``d`` features."""
        if self.phases:
            runs = [tuple(self._phase(word) for word in words.split("+")) for words in self.phases]
        else:
            gamma = 5 / d if self.gamma is None else self.gamma
            runs = [
                (self._with_options(method, gamma, self.steps, rho, self.m if method == "m-sam" else None),)
                for method in self.methods
                for rho in ((0.0,) if method in {"gd", "sgd"} else self.rho)
            ]
        if not runs:
            raise InputError("there must be something to run, got neither methods with radii nor phases.")
        self._require_read([phase for phases in runs for phase in phases])
        return [Plan(phases, self.alpha, self.balanced, seed, self.kernel) for phases in runs]

    def _require_read(self, phases: Sequence[Phase]) -> None:
        """Refuses options that no phase of any run reads."""
        if all(phase.method in {"gd", "sgd"} for phase in phases):
            require_default(self, ("rho",), "where nothing climbs")
        if not any(phase.rho > 0.0 for phase in phases):
            require_default(self, ("rho_convention", "normalized", "derivative_only"), "where nothing climbs")
        if all(replace(phase, rho_convention="original").reach(2) == phase.rho for phase in phases):
            doubled = "where no example climbs alone, by rho times its gradient"
            require_default(self, ("rho_convention",), doubled)
        if not any(phase.is_algebraic for phase in phases):
            require_default(self, ("kernel",), "without gd, n-sam or 1-sam free of further options")
        if self.data is not None and all(phase.method != "sgd" for phase in phases):
            require_default(self, ("seeds",), "where the data are given and nothing is drawn")

    def _phase(self, word: str) -> Phase:
        """The phase that METHOD:GAMMA:STEPS[:RHO[:M]] says."""
        method, *numbers = word.split(":")
        try:
            gamma, steps = float(numbers[0]), int(numbers[1])
            rho = float(numbers[2]) if len(numbers) > 2 else 0.0
            m = int(numbers[3]) if len(numbers) > 3 else None
        except (ValueError, IndexError):
            numbers = []
        if not 2 <= len(numbers) <= 4:
            raise InputError(f"a phase must be METHOD:GAMMA:STEPS[:RHO[:M]], got {word!r}.")
        return self._with_options(method, gamma, steps, rho, m)

    def _with_options(self, method: str, gamma: float, steps: int, rho: float, m: int | None) -> Phase:
        one_of("method", method, ("gd", "sgd", "n-sam", "1-sam", "m-sam"))
        return Phase(
            method,  # type: ignore[arg-type]
            gamma,
            steps,
            rho,
            m,
            self.rho_convention,
            self.normalized and method not in {"gd", "sgd"},
            self.derivative_only and method not in {"gd", "sgd"},
            self.normalized_step,
            self.weight_decay,
            self.balance,
            self.thresholds,
        )


@dataclass(frozen=True)
class Outcome:
    """One run of an experiment."""

    label: str
    seed: int
    plan: Plan
    problem: Problem
    result: Result
    theory: Comparison | None

    def row(self) -> dict[str, Any]:
        """Its numbers: final losses, norm, support errors, and the theorem's."""
        result = self.result
        row: dict[str, Any] = {
            "run": self.label,
            "seed": self.seed,
            "train_loss": float(result.train_loss[-1]),
            "test_loss": float(result.test_loss[-1]),
            "diverged": not bool(np.isfinite(result.train_loss[-1])),
            "l1_norm": result.l1_norm,
        }
        if self.problem.support is not None and not row["diverged"]:
            row["missed"], row["spurious"] = result.support_errors(self.problem)
        if self.theory is not None:
            theory, seen = self.theory, ~np.isnan(self.theory.shrunk)
            row |= {
                "area": theory.area,
                "shrunk": float(theory.shrunk[seen].sum()),
                "predicted": float(theory.predicted[seen].sum()),
                "hidden": theory.hidden,
                "distance": theory.distance,
                "kkt": theory.kkt,
            }
        return row

    def tables(self) -> dict[str, dict[str, Array]]:
        """``result``: its losses; ``weights``: its weights, and what the theorem says of them."""
        result, theory = self.result, self.theory
        losses = {
            "iteration": result.iterations,
            "train_loss": result.train_loss,
            "test_loss": result.test_loss,
            "area": result.area,
        }
        weights = {"coordinate": np.arange(len(result.u)), "u": result.u, "v": result.v, "beta": result.beta}
        if theory is not None:
            weights |= {
                "shrunk": theory.shrunk,
                "predicted": theory.predicted,
                "alpha": theory.alpha,
                "minimizer": theory.minimizer,
            }
        return {"result": losses, "weights": weights}


def conduct(
    config: DiagonalConfig,
    *,
    threads: int | None = None,
    on_done: Callable[[int], object] | None = None,
    on_wait: Callable[[], object] | None = None,
) -> list[Outcome]:
    """Runs everything that ``config`` says, several at a time, seed by seed in the result.

    Args:
        config: What to run.
        threads: Runs at a time; ``None`` for one per core. The result does not depend on it.
        on_done: Called with a run's index as soon as it has ended.
        on_wait: Called several times a second; an exception that it raises ends this.

    Raises:
        InputError: If an option is out of its range.
    """
    todo = [functools.partial(_outcome, config, *job) for job in planned(config)]
    return in_threads(todo, threads=threads, on_done=on_done, on_wait=on_wait)


def planned(config: DiagonalConfig) -> list[tuple[str, int, Problem, Plan]]:
    """Label, seed, data and plan of every run.

    Raises:
        InputError: If an option is out of its range.
    """
    jobs = []
    for seed in range(config.seeds):
        problem = config.problem(seed)
        plans = config.plans(seed, problem.d)
        for label, plan in zip(_labels(plans), plans, strict=True):
            plan.start(problem.d)
            jobs.append((label, seed, problem, plan))
    return jobs


def _labels(plans: Sequence[Plan]) -> list[str]:
    """With step sizes and steps where they are what tells two runs apart."""
    short = [plan.label for plan in plans]
    long = [
        " → ".join(f"{phase.label}, γ = {phase.gamma:g}, {phase.steps} steps" for phase in plan.phases)
        for plan in plans
    ]
    labels = [long[i] if short.count(label) > 1 else label for i, label in enumerate(short)]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"runs must differ, got {label} twice.")
    return labels


def _outcome(config: DiagonalConfig, label: str, seed: int, problem: Problem, plan: Plan) -> Outcome:
    result = plan.run(problem)
    theory = compare(problem, plan, result) if config.theory else None
    return Outcome(label, seed, plan, problem, result, theory)


def _stored(path: Path) -> Problem:
    """The data in an ``.npz`` file."""
    found = read_arrays(path)
    if not {"X", "y"} <= set(found) or set(found) - {"X", "y", "X_test", "y_test"}:
        names = ", ".join(sorted(found)) or "nothing"
        raise InputError(f"{path} must hold X and y, and X_test and y_test or not, got {names}.")
    return Problem.of(found["X"], found["y"], X_test=found.get("X_test"), y_test=found.get("y_test"))
