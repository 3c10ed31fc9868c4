"""Theorem 2 measured for several group sizes, and the files it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from lowland.diagonal.convergence import Convergence, Quadratics, loss_gap, mean_square_gradient
from lowland.diagonal.problem import sparse_regression
from lowland.errors import InputError, one_of, require_at_most, require_default, require_finite
from lowland.runs.threads import in_threads

Kind = Literal["noisy", "regression"]


@dataclass(frozen=True)
class Theorem2Config:
    """What to minimize, and with which groups.

    Attributes:
        problem: noisy is a mean of quadratics with one Hessian and scattered minimizers, so that the variance
            of the gradients is the same everywhere; regression is least squares on the data of the notebook.
        m: Examples in a group.
        steps: Largest number of steps T.
        seeds: Independent runs, whose mean stands for the expectation.
        eigenvalues: Of the Hessian, for noisy; some may be zero.
        n: Number of losses, for noisy.
        noise: Standard deviation of the minimizers, for noisy.
        label_noise: Standard deviation of noise on the targets, for regression.
    """

    problem: Kind = "noisy"
    m: tuple[int, ...] = (1, 16)
    steps: int = 10_000
    seeds: int = 20
    eigenvalues: tuple[float, ...] = (1.0, 0.5, 0.2, 0.1, 0.0, 0.0)
    n: int = 50
    noise: float = 1.0
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        require_at_most(self, {"m": 10**6, "steps": 10**12, "seeds": 10**5, "n": 10**6})
        require_finite(self)
        one_of("problem", self.problem, ("noisy", "regression"))
        unread = ("label_noise",) if self.problem == "noisy" else ("eigenvalues", "n", "noise")
        require_default(self, unread, f"for {self.problem}")
        if not self.m:
            raise InputError("m must be at least one number, got none.")
        for name, value in (("m", min(self.m)), ("steps", self.steps), ("seeds", self.seeds)):
            if value < 1:
                raise InputError(f"{name} must be positive, got {value}.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"command": "theorem2"} | fields

    def losses(self) -> Quadratics:
        """What is minimized."""
        if self.problem == "regression":
            return Quadratics.least_squares(sparse_regression(label_noise=self.label_noise))
        return Quadratics.noisy(self.eigenvalues, n=self.n, noise=self.noise)


@dataclass(frozen=True)
class Check:
    """One of the theorem's two statements, for one m."""

    label: str
    statement: Literal["loss", "gradient"]
    found: Convergence

    def row(self) -> dict[str, Any]:
        """Measured and allowed at the largest T, and the closest that the two came."""
        found = self.found
        return {
            "run": self.label,
            "statement": self.statement,
            "steps": int(found.steps[-1]),
            "measured": float(found.measured[-1]),
            "bound": float(found.bound[-1]),
            "closest": float((found.measured / found.bound).max()),
            "variance": found.variance,
        }

    def tables(self) -> dict[str, dict[str, Any]]:
        """``result``: measured and allowed at every T."""
        found = self.found
        curve = {"steps": found.steps, "measured": found.measured, "error": found.error, "bound": found.bound}
        return {"result": curve | {"statement": [self.statement] * len(found.steps)}}


def conduct(
    config: Theorem2Config,
    *,
    on_done: Callable[[int], object] | None = None,
    on_wait: Callable[[], object] | None = None,
) -> list[Check]:
    """Both statements for every m, one after the other.

    Args:
        config: What to run.
        on_done: Called with the index of each as soon as it is there.
        on_wait: Called several times a second; an exception that it raises ends this.

    Raises:
        InputError: If an option is out of its range.
    """
    problem = config.losses()
    horizons = [T for T in (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000) if config.steps >= T]
    jobs: list[Callable[[], Check]] = []
    for m in config.m:
        gap = partial(loss_gap, problem, steps=config.steps, m=m, runs=config.seeds)
        steps = horizons or [config.steps]
        slope = partial(mean_square_gradient, problem, steps=steps, m=m, runs=config.seeds)
        jobs += [partial(_check, m, "loss", gap), partial(_check, m, "gradient", slope)]
    return in_threads(jobs, threads=1, on_done=on_done, on_wait=on_wait)


def _check(m: int, statement: Literal["loss", "gradient"], measure: Callable[[], Convergence]) -> Check:
    return Check(f"m = {m}", statement, measure())
