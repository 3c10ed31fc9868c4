"""Training of one-hidden-layer ReLU networks: gradient descent, SGD, and SAM with every m."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from lowland.errors import InputError, one_of
from lowland.relu.kernels import Rule, Weights, descend
from lowland.relu.network import Network
from lowland.relu.problem import Array, Regression
from lowland.runs.threads import in_pieces

Schedule = Literal["constant", "linear"]
StopOn = Literal["unperturbed", "perturbed"]


@dataclass(frozen=True)
class Training:
    r"""How :math:`\frac12\sum_i (f(x_i) - y_i)^2` is minimized.

    Attributes:
        rho: Length of the climb, over all three tensors together; 0 for plain gradient descent.
        m: Examples in a group; ``None`` for all of the step's (n-SAM with the full batch).
        gamma: Step size.
        schedule: ``"constant"``, or ``"linear"``: to 0 at the step before the last.
        steps: Most steps.
        batch: Examples of a step, drawn without replacement epoch by epoch; ``None`` for all.
        normalized: Whether a climb has length ``rho``; otherwise it is ``rho`` times the gradient.
        stop_loss: Training ends when the loss of a step is not larger.
        stop_on: Whether that is the loss at the weights, or at the perturbed ones.

    Raises:
        InputError: If a number is out of its range, or an option does nothing.

    Example:
        >>> from lowland.relu import Training, on_the_line, train
        >>> sam = train(on_the_line(), Training(rho=0.5, m=1, steps=1000))
        >>> sam.steps, bool(sam.perturbed_loss[0] > sam.loss[0])
        (1000, True)
    """

    rho: float = 0.0
    m: int | None = None
    gamma: float = 5e-5
    schedule: Schedule = "linear"
    steps: int = 1_000_001
    batch: int | None = None
    normalized: bool = True
    stop_loss: float = 1e-5
    stop_on: StopOn = "unperturbed"

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        one_of("schedule", self.schedule, ("constant", "linear"))
        one_of("stop_on", self.stop_on, ("unperturbed", "perturbed"))
        for name in ("rho", "stop_loss"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} must be non-negative and finite, got {getattr(self, name)}.")
        if not 0.0 < self.gamma < np.inf:
            raise InputError(f"gamma must be positive and finite, got {self.gamma}.")
        for name in ("m", "batch", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be positive, got {value}.")
        if self.m is not None and not self.rho > 0.0:
            raise InputError(f"m needs a climb, but rho is {self.rho}.")
        if self.steps < 2 and self.schedule == "linear":
            raise InputError(f"steps must be at least 2 for a linear schedule, got {self.steps}.")

    def examples_per_step(self, n: int) -> int:
        """How many of ``n`` examples a step uses.

        Raises:
            InputError: If a batch is larger than that.
        """
        if self.batch is not None and self.batch > n:
            raise InputError(f"batch must be at most the {n} examples, got {self.batch}.")
        return self.batch or n

    @classmethod
    def original(cls, rho: float) -> Training:
        """The notebook's: with a climb the step size falls, and the perturbed loss stops.

        So its ERM ends at a loss of 1e-5 after some 10^4 steps, and its SAM, whose perturbed loss never gets
        that small, after all 1,000,001.

        Args:
            rho: Length of the climb; 0 for plain gradient descent.
        """
        if rho > 0.0:
            return cls(rho=rho, schedule="linear", stop_on="perturbed")
        return cls(schedule="constant")


@dataclass(frozen=True)
class Result:
    """What a run did. A run that diverged has NaN from there on.

    Attributes:
        iterations: Steps before which the losses were noted, counted from 0.
        loss: Half the sum of squared residuals, of the step's examples.
        perturbed_loss: The same at the perturbed weights.
        steps: Steps taken.
        network: Final weights.
    """

    iterations: Int[Array, " logged"]
    loss: Float[Array, " logged"]
    perturbed_loss: Float[Array, " logged"]
    steps: int
    network: Network

    def final_loss(self, problem: Regression) -> float:
        """The loss of all training examples at the final weights.

        Args:
            problem: The data.

        Returns:
            Half the sum of squared residuals.
        """
        return 0.5 * float(np.square(self.network(problem.x) - problem.y).sum())

    def test_loss(self, problem: Regression) -> float:
        """The loss of the test examples at the final weights.

        Args:
            problem: The data.

        Returns:
            Half the mean squared residual; NaN without test examples.
        """
        if len(problem.y_test) == 0:
            return float("nan")
        return 0.5 * float(np.square(self.network(problem.x_test) - problem.y_test).mean())


def train(problem: Regression, training: Training, *, start: Network | None = None, seed: int = 0) -> Result:
    """Trains a one-hidden-layer ReLU network.

    Args:
        problem: The data.
        training: How.
        start: Where from; ``None`` for the original's initialization with 100 neurons. It is left as it is.
        seed: Of the initialization, and of the order of the examples if there are batches.

    Returns:
        What the run did.

    Raises:
        InputError: If the network's inputs are not those of the problem, or a batch is larger than it.

    Example:
        >>> from lowland.relu import Training, on_the_line, train
        >>> erm = train(on_the_line(), Training.original(0.0))
        >>> bool(erm.final_loss(on_the_line()) <= 1e-5)
        True
    """
    start = Network.initialized(d=problem.d, seed=seed) if start is None else start
    if len(start.w) != problem.d:
        raise InputError(f"the network must have {problem.d} inputs as the data, got {len(start.w)}.")
    here = Weights(start.w.copy(), start.b.copy(), start.a.copy())
    logged = np.unique(np.geomspace(1, training.steps, 400).astype(np.int64)) - 1
    losses = np.empty((2, len(logged)))
    rule, reached, steps = _rule(training, problem.n, seed), 0, 0
    for begin, end in in_pieces(int(logged[-1]) + 1, cost=rule.order.shape[1] * start.w.size):
        steps, reached = descend(problem.x, problem.y, here, rule, logged, losses, reached, begin, end)
        if steps < end:
            break
    return Result(logged[:reached], losses[0, :reached], losses[1, :reached], steps, Network(*here))


def _rule(training: Training, n: int, seed: int) -> Rule:
    size = training.examples_per_step(n)
    return Rule(
        0 if training.rho == 0.0 else training.m or size,
        training.gamma,
        training.steps - 1 if training.schedule == "linear" else 0,
        training.rho,
        training.normalized,
        training.stop_loss,
        training.stop_on == "perturbed",
        np.arange(n)[None] if size == n else _order(training.steps, size, n, seed),
    )


def _order(steps: int, size: int, n: int, seed: int) -> Array:
    """Rows of ``size`` examples: permutations one after the other, what is left of each dropped."""
    per_epoch = n // size
    epochs = -(-steps // per_epoch)
    draw = np.random.default_rng((seed, 1))
    rows = draw.permuted(np.broadcast_to(np.arange(n), (epochs, n)), axis=1)
    order: Array = rows[:, : per_epoch * size].reshape(-1, size)[:steps]
    return order
