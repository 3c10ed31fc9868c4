"""Training of diagonal linear networks: gradient descent, SGD and SAM with every m, in phases."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lowland.diagonal.algebraic import Padded, algebraic
from lowland.diagonal.kernels import Data, Place, Record, Rule, in_order
from lowland.diagonal.problem import Array, Problem
from lowland.errors import InputError, one_of
from lowland.runs.threads import in_pieces, in_threads

Method = Literal["gd", "sgd", "n-sam", "1-sam", "m-sam"]
Convention = Literal["consistent", "original"]
Kernel = Literal["in order", "algebraic"]
METHODS = ("gd", "sgd", "n-sam", "1-sam", "m-sam")
CONVENTIONS = ("consistent", "original")
KERNELS = ("in order", "algebraic")


@dataclass(frozen=True)
class Phase:
    r"""Some steps of one method on :math:`L = \frac{1}{2n}\|X(u \odot v) - y\|^2`.

    Every method uses all examples in every step but ``"sgd"``, which uses one; ``"1-sam"`` and ``"m-sam"``
    average the gradients of all groups, each at its own perturbed weights.

    Attributes:
        method: ``"gd"``, ``"sgd"``, ``"n-sam"`` (one climb along the gradient of L), ``"1-sam"`` (one per
            example, along the gradient of :math:`\ell_i = \frac12 r_i^2`) or ``"m-sam"``.
        gamma: Step size.
        steps: Number of steps.
        rho: What a group's gradient is multiplied with in its climb; the climb's length if ``normalized``.
        m: Examples in a group, for ``"m-sam"``; ragged last groups count by their examples.
        rho_convention: ``"original"`` is that of the original's code, whose 1-SAM climbs along the gradient
            of :math:`r_i^2`: twice as far.
        normalized: Whether a climb has length ``rho``.
        derivative_only: Whether only the residuals see the perturbed weights.
        normalized_step: Whether a step has length ``gamma``.
        weight_decay: Factor on the weights that is added to the gradient.
        balance: Factor on the gradient of :math:`\frac14\|u^2 - v^2\|^2`, which is added.
        thresholds: Training losses below which the step size is halved, each once, falling.

    Raises:
        InputError: If a number is out of its range, or an option is of another method.

    Example:
        >>> from lowland.diagonal import Phase
        >>> Phase("m-sam", gamma=0.1, rho=0.05, m=4).label, Phase("n-sam", gamma=0.1).group(20)
        ('4-SAM, ρ = 0.05', 20)
    """

    method: Method
    gamma: float
    steps: int = 10_001
    rho: float = 0.0
    m: int | None = None
    rho_convention: Convention = "consistent"
    normalized: bool = False
    derivative_only: bool = False
    normalized_step: bool = False
    weight_decay: float = 0.0
    balance: float = 0.0
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        one_of("method", self.method, METHODS)
        one_of("rho_convention", self.rho_convention, CONVENTIONS)
        if not 0.0 < self.gamma < np.inf:
            raise InputError(f"gamma must be positive and finite, got {self.gamma}.")
        if self.steps < 1:
            raise InputError(f"steps must be positive, got {self.steps}.")
        for name in ("rho", "weight_decay", "balance"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} must be non-negative and finite, got {getattr(self, name)}.")
        if self.rho > 0.0 and self.method in {"gd", "sgd"}:
            raise InputError(f"rho must be 0 for {self.method}, got {self.rho}.")
        if (self.m is not None) != (self.method == "m-sam"):
            raise InputError(f"m must be given for m-sam and only for it, got {self.m} for {self.method}.")
        if self.m is not None and self.m < 1:
            raise InputError(f"m must be positive, got {self.m}.")
        if any(b >= a for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise InputError(f"thresholds must fall, got {self.thresholds}.")

    @property
    def label(self) -> str:
        """For tables and pictures; ``[2ρ]`` marks the original's 1-SAM, which climbs twice as far."""
        if self.method in {"gd", "sgd"}:
            return self.method.upper()
        name = f"{self.m}-SAM" if self.m else self.method.replace("sam", "SAM")
        doubled = " [2ρ]" if self.reach(2) != self.rho else ""
        return f"{name}, ρ = {self.rho:g}{doubled}"

    def group(self, n: int) -> int:
        """How many examples are in a group of ``n``; 0 without a climb."""
        if self.method in {"gd", "sgd"}:
            return 0
        return {"n-sam": n, "1-sam": 1}.get(self.method) or min(self.m or n, n)

    @property
    def is_algebraic(self) -> bool:
        """Whether the rearranged kernel knows it: GD, n-SAM and 1-SAM without further options."""
        plain = Phase(self.method, self.gamma, self.steps, self.rho, self.m, self.rho_convention)
        return self == plain and self.method in {"gd", "n-sam", "1-sam"}

    def reach(self, n: int) -> float:
        """What the gradient of a group's mean of half squares is multiplied with.

        Args:
            n: Number of training examples.
        """
        doubled = self.rho_convention == "original" and self.group(n) == 1 and not self.normalized
        return 2.0 * self.rho if doubled else self.rho

    def rule(self, n: int, draws: np.random.Generator) -> Rule:
        """The phase as the kernel takes it.

        Args:
            n: Number of training examples.
            draws: Where the examples of SGD are drawn.
        """
        return Rule(
            self.group(n),
            self.gamma,
            self.reach(n),
            self.normalized,
            self.derivative_only,
            self.normalized_step,
            self.weight_decay,
            self.balance,
            np.array(self.thresholds, dtype=np.float64),
            draws.integers(n, size=self.steps) if self.method == "sgd" else np.empty(0, np.int64),
        )


@dataclass(frozen=True)
class Result:
    r"""What a run did. A run that diverged has NaN from there on.

    Attributes:
        iterations: Steps after which the losses were noted, counted from 0.
        train_loss: :math:`\frac{1}{2n}\|X\beta - y\|^2`.
        test_loss: The same of the test data; NaN without any.
        area: :math:`\sum_s \gamma L_s`, the integral of the training loss up to there.
        u: Final weights.
        v: Final weights.
        exponent: Per coordinate, what the climbs took from :math:`\log\alpha`: the sum over steps of
            :math:`\gamma\rho\, g_S \odot g_S'`, averaged over groups (Theorem 1's :math:`\rho\Delta`).
    """

    iterations: Int[Array, " logged"]
    train_loss: Float[Array, " logged"]
    test_loss: Float[Array, " logged"]
    area: Float[Array, " logged"]
    u: Float[Array, " d"]
    v: Float[Array, " d"]
    exponent: Float[Array, " d"]

    @property
    def beta(self) -> Float[Array, " d"]:
        """The linear predictor."""
        product: Array = self.u * self.v
        return product

    @property
    def l1_norm(self) -> float:
        """Its l1 norm."""
        return float(np.abs(self.beta).sum())

    def support_errors(self, problem: Problem, *, threshold: float = 0.01) -> tuple[int, int]:
        """How far the predictor's support is from the true one.

        Args:
            problem: The data, whose coefficients are known.
            threshold: From which size on a coefficient counts.

        Returns:
            Coefficients of the support that are smaller, and others that are not.

        Raises:
            InputError: If the problem has no ``theta_star``.
        """
        if problem.support is None:
            raise InputError("support errors need the coefficients that made the targets, got none.")
        found = np.abs(self.beta) >= threshold
        return int((problem.support & ~found).sum()), int((~problem.support & found).sum())


def logged_iterations(steps: int) -> Int[Array, " logged"]:
    """The original's: the first 500 steps, then 50 per factor of ten, and the last.

    Args:
        steps: Number of steps.

    Returns:
        The steps, counted from 0, rising.

    Example:
        >>> from lowland.diagonal import logged_iterations
        >>> found = logged_iterations(10_001)
        >>> len(found), int(found[499]), int(found[-1])
        (566, 499, 10000)
    """
    powers = np.logspace(0, np.log10(max(steps - 1, 1)), 1 + int(np.ceil(50 * np.log10(max(steps - 1, 2)))))
    early = np.arange(min(500, steps))
    found = np.unique(np.concatenate([early, powers.astype(np.int64), [steps - 1]]))
    return found[found < steps]


@dataclass(frozen=True)
class Plan:
    r"""A run: where it starts, and its phases.

    Attributes:
        phases: Each starts where the one before it ended.
        alpha: Initialization: :math:`u = \alpha`, :math:`v = 0`; a number or one per coordinate.
        balanced: Whether ``alpha`` is that of :math:`w_+ = w_- = \alpha` instead: :math:`u = 2\alpha`,
            :math:`v = 0`.
        seed: Of the examples that SGD draws.
        kernel: ``"in order"`` computes every method in the order of its definition; ``"algebraic"`` is faster
            for GD, n-SAM and 1-SAM without further options, and differs in the last digits.

    Raises:
        InputError: If there is no phase or no such kernel.

    Example:
        >>> from lowland.diagonal import Phase, Plan, Problem
        >>> problem = Problem.of([[1.0, 0.5]], [1.0])
        >>> plan = Plan((Phase("1-sam", 0.05, 1000, rho=0.1), Phase("gd", 0.05, 2000)), alpha=0.1)
        >>> print(plan.label, round(float(problem.X[0] @ plan.run(problem).beta), 4))
        1-SAM, ρ = 0.1 → GD 1.0
    """

    phases: tuple[Phase, ...]
    alpha: float | ArrayLike = 0.1
    balanced: bool = False
    seed: int = 0
    kernel: Kernel = "in order"

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        one_of("kernel", self.kernel, KERNELS)
        if not self.phases:
            raise InputError("phases must hold at least one phase, got none.")

    @property
    def label(self) -> str:
        """Of all phases."""
        return " → ".join(phase.label for phase in self.phases)

    def start(self, d: int) -> tuple[Array, Array]:
        """The weights that training begins with.

        Args:
            d: Number of features.

        Raises:
            InputError: If ``alpha`` is not positive, or not as many.
        """
        values = np.asarray(self.alpha, dtype=np.float64)
        if values.shape not in {(), (d,)} or not (values > 0).all() or not np.isfinite(values).all():
            raise InputError(f"alpha must be a positive number or {d} of them, got {self.alpha}.")
        return np.broadcast_to(values * (2.0 if self.balanced else 1.0), (d,)).copy(), np.zeros(d)

    def run(self, problem: Problem) -> Result:
        """Trains on ``problem``.

        Returns:
            What the run did.
        """
        u, v = self.start(problem.d)
        exponent, draws = np.zeros(problem.d), np.random.default_rng(self.seed)
        data = _data(problem, problem.X_test, problem.y_test)
        records: list[Record] = []
        for phase in self.phases:
            logged = logged_iterations(phase.steps)
            train_loss, test_loss, areas = (np.empty(len(logged)) for _ in range(3))
            record = Record(logged, train_loss, test_loss, areas, exponent)
            if self.kernel == "algebraic" and phase.is_algebraic:
                _rearranged(problem, phase, u, v, record)
            else:
                rule, place = phase.rule(problem.n, draws), Place.start(phase.gamma)
                for begin, end in _pieces(problem, phase):
                    in_order(data, u, v, rule, record, place, begin, end)
            records.append(record)
        return _joined(records, u, v)


def _rearranged(problem: Problem, phase: Phase, u: Array, v: Array, record: Record) -> None:
    data, place = _data(problem, *problem.condensed_test), Place.start(phase.gamma)
    m, reach, here = phase.group(problem.n), phase.reach(problem.n), Padded.of(u, v)
    for begin, end in _pieces(problem, phase):
        algebraic(data, here, m, reach, record, place, begin, end)
    u[:], v[:] = here.u[: len(u)], here.v[: len(v)]
    record.exponent[:] += here.exponent[: len(u)]


def _pieces(problem: Problem, phase: Phase) -> Iterator[tuple[int, int]]:
    return in_pieces(phase.steps, cost=problem.X.size)


def _data(problem: Problem, X_test: Array, y_test: Array) -> Data:
    return Data(problem.X, problem.X.T.copy(), problem.y, X_test.T.copy(), y_test)


def _joined(records: Sequence[Record], u: Array, v: Array) -> Result:
    """The result of phases, each of which counted from its own beginning."""
    before = np.cumsum([0, *(record.logged[-1] + 1 for record in records)])
    areas = np.cumsum([0.0, *(record.areas[-1] for record in records)])
    return Result(
        np.concatenate([record.logged + first for record, first in zip(records, before, strict=False)]),
        np.concatenate([record.train for record in records]),
        np.concatenate([record.test for record in records]),
        np.concatenate([record.areas + first for record, first in zip(records, areas, strict=False)]),
        u,
        v,
        records[0].exponent,
    )


def train(
    problem: Problem,
    method: Method,
    *,
    gamma: float,
    alpha: float | ArrayLike = 0.1,
    rho: float = 0.0,
    steps: int = 10_001,
    rho_convention: Convention = "consistent",
    m: int | None = None,
    balanced: bool = False,
    seed: int = 0,
    kernel: Kernel = "in order",
) -> Result:
    r"""Trains :math:`f(x) = \langle x, u \odot v\rangle` by one method.

    Args:
        problem: The data.
        method: As of a :class:`Phase`, and so are ``gamma``, ``rho``, ``steps``, ``rho_convention`` and
            ``m``.
        gamma: Step size.
        alpha: As of a :class:`Plan`, and so are ``balanced``, ``seed`` and ``kernel``.
        rho: What a group's gradient is multiplied with in its climb.
        steps: Number of steps.
        rho_convention: Whose ``rho`` it is.
        m: Examples in a group, for ``"m-sam"``.
        balanced: Whether ``alpha`` is that of :math:`w_+ = w_- = \alpha`.
        seed: Of the examples that SGD draws.
        kernel: ``"in order"``, or the faster ``"algebraic"``.

    Returns:
        What the run did.

    Raises:
        InputError: If a number is out of its range or ``method`` is none.

    Example:
        >>> from lowland.diagonal import sparse_regression, train
        >>> result = train(sparse_regression(), "gd", gamma=1 / 6, alpha=0.1, steps=101)
        >>> print(f"{result.train_loss[-1]:.3e} {result.test_loss[-1]:.3e}")
        9.060e-03 5.648e-02
    """
    phase = Phase(method, gamma, steps, rho, m, rho_convention)
    return Plan((phase,), alpha, balanced, seed, kernel).run(problem)


def sweep(problem: Problem, plans: Sequence[Plan], *, threads: int | None = None) -> list[Result]:
    """Runs all ``plans``, several at once; the results do not depend on how many.

    Args:
        problem: The data of all.
        plans: What to run.
        threads: Runs at a time; ``None`` for one per core.

    Returns:
        A result for each plan, in order.

    Raises:
        InputError: If a plan does not fit the data.

    Example:
        >>> from lowland.diagonal import Phase, Plan, Problem, sweep
        >>> plans = [Plan((Phase("gd", gamma=0.05, steps=2000),), alpha=alpha) for alpha in (0.01, 1.0)]
        >>> results = sweep(Problem.of([[1.0, 0.5]], [1.0]), plans)
        >>> [round(result.l1_norm, 3) for result in results]  # the least l1 norm is 1
        [1.003, 1.172]
    """
    return in_threads([functools.partial(plan.run, problem) for plan in plans], threads=threads)
