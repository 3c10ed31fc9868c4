"""Eigenvalues, trace and spectral density of the Hessian and of the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from lowland.errors import InputError, one_of
from lowland.sharpness.averaged import Reduction
from lowland.sharpness.objective import Batch, Loss, Params, objective
from lowland.sharpness.products import Matrix, gauss_newton_of_part, hessian_of_part

End = Literal["largest", "smallest"]
Array = np.ndarray
_DENSE = 40
"""Matrices of at most so many rows are formed."""


@dataclass(frozen=True)
class GaussNewton:
    r"""A loss in two parts, :math:`\ell(f(x))`, whose Gauss-Newton matrix is wanted in place of its Hessian.

    Attributes:
        outputs: ``outputs(*batch)``: the model's outputs.
        criterion: ``criterion(outputs, *batch)``: their mean loss as a scalar, or one value per example.

    Example:
        >>> import torch
        >>> from lowland.sharpness import GaussNewton, hessian_trace
        >>> a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
        >>> def outputs(x):
        ...     return x * a * b
        >>> def criterion(outputs, x):
        ...     return 0.5 * outputs.square()
        >>> loss = GaussNewton(outputs, criterion)  # of J = (1, 1), without the curvature of a * b
        >>> found = hessian_trace(loss, [a, b], (torch.ones(1),))
        >>> round(found.value, 4)
        2.0
    """

    outputs: Callable[..., Tensor]
    criterion: Callable[..., Tensor]

    def __call__(self, *batch: Any) -> Tensor:
        """The loss of the examples in ``batch``."""
        return self.criterion(self.outputs(*batch), *batch)


@dataclass(frozen=True)
class Eigenvalues:
    """Some eigenvalues of a symmetric matrix over the weights.

    Attributes:
        values: Largest first, or smallest first.
        vectors: The eigenvectors, of length 1: a row each, over all weights in the order of the parameters.
        residuals: Length of ``H v - value v`` for each.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k weights"]
    residuals: Float[Array, " k"]
    examples: int
    products: int

    @property
    def value(self) -> float:
        """The first."""
        return float(self.values[0])

    @property
    def ratio(self) -> float:
        r""":math:`\\lambda_1/\\lambda_5`, the measure of Foret et al. (2021); NaN with fewer than five."""
        return float(self.values[0] / self.values[4]) if len(self.values) > 4 else float("nan")


@dataclass(frozen=True)
class Trace:
    """An estimated trace.

    Attributes:
        value: The estimate.
        stderr: Its standard error; 0 if the trace is exact, NaN with a single sample.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
    """

    value: float
    stderr: float
    examples: int
    products: int


@dataclass(frozen=True)
class SpectralDensity:
    """Eigenvalues' density from Lanczos runs: each run's nodes are eigenvalues with weights that sum to 1.

    Attributes:
        nodes: Ritz values.
        weights: Their weights.
        examples: Examples whose mean loss it is.
        products: Matrix-vector products that it took.
    """

    nodes: Float[Array, "runs steps"]
    weights: Float[Array, "runs steps"]
    examples: int
    products: int

    def on(self, grid: ArrayLike, *, width: float) -> Float[Array, " grid"]:
        """The density at ``grid``, each node a Gaussian of standard deviation ``width``.

        Args:
            grid: Where.
            width: That deviation, positive.

        Raises:
            InputError: If ``width`` is not positive.
        """
        if not width > 0.0:
            raise InputError(f"width must be positive, got {width}.")
        away = (np.asarray(grid, dtype=np.float64)[:, None, None] - self.nodes) / width
        bumps = np.exp(-0.5 * away**2) / (width * np.sqrt(2.0 * np.pi))
        density: Array = (bumps * self.weights).sum(axis=2).mean(axis=1)
        return density

    def moment(self, power: int) -> float:
        """The mean of the eigenvalues to the ``power``."""
        return float((self.weights * self.nodes**power).sum(axis=1).mean())


def hessian_eigenvalues(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    *,
    k: int = 1,
    end: End = "largest",
    tol: float = 1e-6,
    max_products: int = 2000,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Eigenvalues:
    """The ``k`` largest or smallest eigenvalues of the mean loss's Hessian, by Lanczos iteration (ARPACK).

    Args:
        loss: The mean loss of the examples it is given, as for :func:`lowland.sam_gradient`; a
            :class:`GaussNewton` asks for that matrix.
        params: The parameters; unchanged, and so are their ``.grad``, buffers and random generators.
        batch: The loss's arguments, or :class:`~lowland.sam.MicroBatches` of such, which count by their
            examples.
        k: Number of eigenvalues.
        end: Which end of the spectrum.
        tol: Relative accuracy.
        max_products: Products after which it gives up.
        seed: Of the first vector.
        reduction: ``"sum"`` for a loss, or a criterion, that adds up its examples instead: it is divided by
            their number.
        module: The module that ``loss`` runs; otherwise modules are found as they run.

    Returns:
        The eigenvalues, with their eigenvectors and how well they are met.

    Raises:
        InputError: If a number is out of its range, the loss does not depend on the parameters, or the
            eigenvalues do not converge.

    Example:
        >>> import torch
        >>> from lowland.sharpness import hessian_eigenvalues
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 2)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> batch = (torch.tensor([[3.0, 1.0, 2.0]]),)
        >>> found = hessian_eigenvalues(loss, w, batch, k=2)
        >>> [round(float(value), 5) for value in found.values]
        [3.0, 2.0]
    """
    one_of("end", end, ("largest", "smallest"))
    if not tol >= 0.0:
        raise InputError(f"tol must be non-negative, got {tol}.")
    with _matrix(loss, params, batch, module, reduction) as matrix:
        if not 1 <= k <= matrix.size:
            raise InputError(f"k must be between 1 and the {matrix.size} weights, got {k}.")
        if matrix.size <= max(_DENSE, 2 * k + 1):
            values, vectors = np.linalg.eigh(matrix.dense())
        else:
            values, vectors = _lanczos(matrix, k, end, tol, max_products, seed)
        order = np.argsort(-values if end == "largest" else values)[:k]
        values, rows = values[order], vectors.T[order]
        residuals = np.array([np.linalg.norm(matrix @ v - x * v) for x, v in zip(values, rows, strict=True)])
        return Eigenvalues(values, rows, residuals, matrix.target.examples, matrix.count)


def hessian_trace(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    *,
    products: int = 90,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> Trace:
    """The trace of the mean loss's Hessian by Hutch++ (Meyer et al., 2021).

    A third of the products finds the directions of large eigenvalues, a third measures them, and the last
    third samples the rest with random signs.

    Args:
        loss: As for :func:`hessian_eigenvalues`, and so are ``params``, ``batch``, ``reduction`` and
            ``module``.
        params: The parameters.
        batch: The examples.
        products: Matrix-vector products; as many as three times the weights make it exact.
        seed: Of the random vectors.
        reduction: Whether the loss is a mean or a sum.
        module: The module that ``loss`` runs.

    Raises:
        InputError: If there are fewer than 3 products, or the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import hessian_trace
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 2)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> batch = (torch.tensor([[3.0, 1.0, 2.0]]),)
        >>> found = hessian_trace(loss, w, batch)
        >>> round(found.value, 4), found.stderr
        (6.0, 0.0)
    """
    if products < 3:
        raise InputError(f"products must be at least 3, got {products}.")
    with _matrix(loss, params, batch, module, reduction) as matrix:
        draw, samples = np.random.default_rng(seed), products // 3
        sketch = [matrix @ _signs(draw, matrix.size) for _ in range(min(samples, matrix.size))]
        basis = np.linalg.qr(np.stack(sketch, axis=1))[0]
        measured = sum(float(q @ (matrix @ q)) for q in basis.T)
        if samples >= matrix.size:
            return Trace(measured, 0.0, matrix.target.examples, matrix.count)
        rest = np.array([_outside(matrix, basis, _signs(draw, matrix.size)) for _ in range(samples)])
        stderr = rest.std(ddof=1) / np.sqrt(samples) if samples > 1 else np.nan
        return Trace(measured + rest.mean(), float(stderr), matrix.target.examples, matrix.count)


def spectral_density(
    loss: Loss | GaussNewton,
    params: Params,
    batch: Batch,
    *,
    steps: int = 80,
    runs: int = 4,
    seed: int = 0,
    reduction: Reduction = "mean",
    module: nn.Module | None = None,
) -> SpectralDensity:
    """The density of the Hessian's eigenvalues by stochastic Lanczos quadrature (Ghorbani et al., 2019).

    Args:
        loss: As for :func:`hessian_eigenvalues`, and so are ``params``, ``batch``, ``reduction`` and
            ``module``.
        params: The parameters.
        batch: The examples.
        steps: Lanczos steps of a run, each reorthogonalized against all before it; at most the weights.
        runs: Random first vectors.
        seed: Of these.
        reduction: Whether the loss is a mean or a sum.
        module: The module that ``loss`` runs.

    Raises:
        InputError: If a number is not positive, or the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> from lowland.sharpness import spectral_density
        >>> w = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def loss(h):  # its Hessian has the diagonal (3, 1, 2)
        ...     return 0.5 * (h @ torch.cat(w).square())
        >>> batch = (torch.tensor([[3.0, 1.0, 2.0]]),)
        >>> found = spectral_density(loss, w, batch)
        >>> [round(float(node), 4) for node in found.nodes[0]]  # with few weights these are the eigenvalues
        [1.0, 2.0, 3.0]
    """
    for name, number in (("steps", steps), ("runs", runs)):
        if number < 1:
            raise InputError(f"{name} must be positive, got {number}.")
    with _matrix(loss, params, batch, module, reduction) as matrix:
        draw = np.random.default_rng(seed)
        found = [_quadrature(matrix, min(steps, matrix.size), draw) for _ in range(runs)]
        nodes, weights = (np.stack(part) for part in zip(*found, strict=True))
        return SpectralDensity(nodes, weights, matrix.target.examples, matrix.count)


def sam_edge(gradient_norm: float, *, rho: float, eta: float) -> float:
    r"""The sharpness at which SAM becomes unstable (Long & Bartlett, 2024).

    .. math::
        \frac{\|g\|}{2\rho}\Bigl(\sqrt{1 + \frac{8\rho}{\eta\|g\|}} - 1\Bigr) \to \frac2\eta
        \quad\text{as } \rho \to 0.

    Args:
        gradient_norm: l2 norm of the gradient.
        rho: Radius of SAM; 0 gives the edge of gradient descent.
        eta: Step size.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> from lowland.sharpness import sam_edge
        >>> sam_edge(1.0, rho=0.0, eta=0.1), round(sam_edge(1.0, rho=0.1, eta=0.1), 6)
        (20.0, 10.0)
    """
    if not (gradient_norm >= 0.0 and rho >= 0.0 and eta > 0.0):
        numbers = f"{gradient_norm}, {rho} and {eta}"
        raise InputError(f"gradient_norm and rho must be non-negative and eta positive, got {numbers}.")
    if rho == 0.0:
        return 2.0 / eta
    if gradient_norm == 0.0:
        return 0.0
    x = 8.0 * rho / (eta * gradient_norm)
    return float(4.0 / (eta * (np.sqrt(1.0 + x) + 1.0)))


@contextmanager
def _matrix(
    loss: Loss | GaussNewton, params: Params, batch: Batch, module: nn.Module | None, reduction: Reduction
) -> Iterator[Matrix]:
    with objective(loss, params, batch, module, reduction) as target:
        if isinstance(loss, GaussNewton):
            yield Matrix(target, gauss_newton_of_part(loss.outputs, loss.criterion))
        else:
            yield Matrix(target, hessian_of_part)


def _lanczos(
    matrix: Matrix, k: int, end: End, tol: float, max_products: int, seed: int
) -> tuple[Array, Array]:
    start = np.random.default_rng(seed).standard_normal(matrix.size)
    operator = LinearOperator((matrix.size, matrix.size), matvec=matrix.__matmul__, dtype=np.float64)
    width = min(max(2 * k + 1, 20), matrix.size)
    restarts = max(1, (max_products - width) // max(width - k, 1))
    which = "LA" if end == "largest" else "SA"
    try:
        values, vectors = eigsh(operator, k, which=which, tol=tol, v0=start, ncv=width, maxiter=restarts)
    except ArpackNoConvergence as error:
        raise InputError(
            f"max_products must be enough for {k} eigenvalues to converge, got {max_products}, "
            f"with which {len(error.eigenvalues)} did."
        ) from None
    return values, vectors


def _quadrature(matrix: Matrix, steps: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Nodes and weights of one Lanczos run; a run that has seen all there is repeats its last node."""
    basis = np.zeros((steps, matrix.size))
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    v = draw.standard_normal(matrix.size)
    basis[0] = v / np.linalg.norm(v)
    for i in range(steps):
        w = matrix @ basis[i]
        diagonal[i] = basis[i] @ w
        for _ in range(2):
            w -= basis[: i + 1].T @ (basis[: i + 1] @ w)
        beside[i] = np.linalg.norm(w)
        if i + 1 == steps:
            break
        if beside[i] <= 1e-10 * max(np.abs(diagonal[: i + 1]).max(), 1e-300):
            steps = i + 1
            break
        basis[i + 1] = w / beside[i]
    nodes, vectors = eigh_tridiagonal(diagonal[:steps], beside[: steps - 1])
    missing = len(diagonal) - steps
    return np.pad(nodes, (0, missing), mode="edge"), np.pad(vectors[0] ** 2, (0, missing))


def _outside(matrix: Matrix, basis: Array, g: Array) -> float:
    rest = g - basis @ (basis.T @ g)
    return float(rest @ (matrix @ rest))


def _signs(draw: np.random.Generator, size: int) -> Array:
    signs: Array = draw.integers(0, 2, size) * 2.0 - 1.0
    return signs
