"""Fisher matrices, by the gradients of single examples, and the norm that they make of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lowland.errors import InputError, one_of
from lowland.sam.batch import num_examples
from lowland.sharpness.averaged import value_and_aux
from lowland.sharpness.curved import GaussNewton, matrix_of
from lowland.sharpness.measurement import Measurement, dtype_name
from lowland.sharpness.objective import Batch, Loss, Params, listed_params

Likelihood = Literal["categorical", "normal"]


def empirical_fisher(loss: Loss) -> GaussNewton:
    r"""The empirical Fisher matrix, :math:`\frac1n \sum_i g_i g_i^\top` of the gradients of the examples.

    It is the Gauss-Newton matrix of half the squared losses. It uses the targets that are there, and is no
    approximation of the Hessian in general (Kunstner et al., 2019): see :func:`monte_carlo_fisher`.

    Args:
        loss: ``loss(*batch)``: one value per example, shape ``(examples,)``, or these with an aux.

    Returns:
        What :func:`hessian_eigenvalues`, :func:`hessian_trace` and :func:`spectral_density` take as a loss.
        They raise an :class:`~lowland.errors.InputError` if the loss is not one value per example.

    Example:
        >>> import torch
        >>> from lowland.sharpness import empirical_fisher, hessian_trace
        >>> w = [torch.tensor([x], requires_grad=True) for x in (1.0, 2.0)]
        >>> def loss(x):
        ...     return x * (w[0] + 3.0 * w[1])  # gradients x * (1, 3), of squared length 10 x ** 2
        >>> round(hessian_trace(empirical_fisher(loss), w, (torch.tensor([1.0, 2.0]),)).value, 4)
        25.0
    """

    def losses(*batch: Any) -> Tensor:
        value = value_and_aux(loss(*batch))[0]
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if got != (num_examples(batch),):
            raise InputError(
                f"loss of an empirical Fisher matrix must return one value per example, shape "
                f"({num_examples(batch)},), got {got}."
            )
        found: Tensor = value
        return found

    return GaussNewton(losses, _half_squares)


def monte_carlo_fisher(
    outputs: Callable[..., Tensor],
    *,
    likelihood: Likelihood = "categorical",
    samples: int = 1,
    seed: int = 0,
) -> GaussNewton:
    r"""The Fisher matrix, :math:`\frac1n \sum_i E_{y \sim p(y | x_i)}\, g_i(y)\, g_i(y)^\top`, from draws.

    The targets are drawn from what the network itself predicts. The mean over draws is the Gauss-Newton
    matrix of the cross entropy, or of half the squared error (Martens, 2020, section 9), which
    :class:`GaussNewton` has without draws; this one needs a product per example in place of one per output.
    The draws are the same in every product.

    Args:
        outputs: ``outputs(*batch)``: the network's outputs, shape ``(examples, classes)`` or
            ``(examples, values)``.
        likelihood: ``"categorical"``: outputs are logits; ``"normal"``: they are means of variance 1.
        samples: Draws for each example.
        seed: Of the draws.

    Returns:
        What :func:`hessian_eigenvalues`, :func:`hessian_trace` and :func:`spectral_density` take as a loss.
        They raise an :class:`~lowland.errors.InputError` if outputs are of another shape.

    Raises:
        InputError: If ``likelihood`` is none, or ``samples`` is not positive.

    Example:
        >>> import torch
        >>> from lowland.sharpness import hessian_trace, monte_carlo_fisher
        >>> w = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
        >>> def logits(x):  # of two classes that are as likely: each gradient is (±x / 2, ±x / 2)
        ...     return torch.stack([x * (w[0] + w[1]), torch.zeros_like(x)], 1)
        >>> round(hessian_trace(monte_carlo_fisher(logits), w, (torch.ones(4),)).value, 4)
        0.5
    """
    one_of("likelihood", likelihood, get_args(Likelihood))
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples must be a positive whole number, got {samples!r}.")
    losses = _of_classes if likelihood == "categorical" else _of_values

    def drawn(*batch: Any) -> Tensor:
        f = outputs(*batch)
        if f.dim() != 2 or len(f) != num_examples(batch):
            raise InputError(
                f"outputs of a Monte Carlo Fisher matrix must have the shape ({num_examples(batch)}, "
                f"classes or values), got {tuple(f.shape)}."
            )
        return losses(f, samples, torch.Generator(f.device).manual_seed(seed))

    return GaussNewton(drawn, _half_squares)


def fisher_rao_norm(
    fisher: GaussNewton,
    params: Params,
    batch: Batch,
    *,
    module: nn.Module | None = None,
) -> Measurement:
    r"""The Fisher-Rao norm :math:`\sqrt{w^\top F w}` (Liang et al., 2019), by one product.

    It does not change when weights are rescaled layer by layer and the function stays.

    Args:
        fisher: F: an :func:`empirical_fisher`, a :func:`monte_carlo_fisher`, or the :class:`GaussNewton`
            matrix of the cross entropy, which is the mean over the network's own predictions.
        params: The parameters w.
        batch: The examples.
        module: The module that is run.

    Returns:
        The norm.

    Raises:
        InputError: As for :func:`hessian_eigenvalues`.

    Example:
        >>> import torch
        >>> from lowland.sharpness import empirical_fisher, fisher_rao_norm
        >>> w = [torch.tensor([x], requires_grad=True) for x in (1.0, 2.0)]
        >>> def loss(x):
        ...     return x * (w[0] + 3.0 * w[1])  # the gradients' inner products with w are 7 x
        >>> round(fisher_rao_norm(empirical_fisher(loss), w, (torch.tensor([1.0, -1.0]),)).value, 4)
        7.0
    """
    with matrix_of(fisher, params, batch, module, "mean") as matrix:
        listed = listed_params(params)
        w = torch.cat([p.detach().reshape(-1).to(matrix.device, matrix.dtype) for p in listed])
        form = float(torch.dot(w, matrix @ w))
        value = math.sqrt(max(form, 0.0))
        return Measurement("Fisher-Rao norm", value, math.nan, matrix.target.examples, dtype_name(listed), {})


def _half_squares(losses: Float[Tensor, "examples ..."], *_: Any) -> Float[Tensor, " examples"]:
    """Their Hessian is the identity over the examples, and their draws."""
    squares = 0.5 * losses.square()
    return squares if squares.dim() == 1 else squares.mean(1)


def _of_classes(f: Tensor, samples: int, generator: torch.Generator) -> Float[Tensor, "examples samples"]:
    """The cross entropy of drawn classes."""
    log_p = F.log_softmax(f, 1)
    drawn = torch.multinomial(log_p.detach().exp(), samples, replacement=True, generator=generator)
    return -log_p.gather(1, drawn)


def _of_values(f: Tensor, samples: int, generator: torch.Generator) -> Float[Tensor, "examples samples"]:
    """Half the squared error of drawn values."""
    noise = torch.randn(*f.shape, samples, generator=generator, device=f.device, dtype=f.dtype)
    return 0.5 * (f[..., None] - (f.detach()[..., None] + noise)).square().sum(1)
