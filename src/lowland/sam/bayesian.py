"""Bayesian SAM: an optimizer that learns a posterior, and the ascent that uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowland.sam.ascent import AscentStep, Weights
from lowland.sam.ascent.step import generator
from lowland.sam.part import Part
from lowland.sam.precision import working


class BSAM(torch.optim.Optimizer):
    r"""The optimizer of Bayesian SAM (bSAM; Möllenhoff & Khan, 2023, algorithm 1).

    The weights are the mean :math:`\omega` of a Gaussian posterior with variances :math:`1 / (N s)`:

    .. math::
        v &\leftarrow \beta_1 v + (1 - \beta_1) (g_e + \delta \omega) \\
        s &\leftarrow \beta_2 s + (1 - \beta_2) (\sqrt s\, |g| + \delta + \gamma) \\
        \omega &\leftarrow \omega - \eta\, v / s,

    where :math:`g_e = \nabla L(\omega + e)` is in ``.grad`` and :math:`g = \nabla L(\theta)`,
    :math:`\theta \sim \mathcal N(\omega, 1 / (N s))`, is what the climb of :class:`BayesianAscent` found.

    Args:
        params: Parameters or parameter groups.
        lr: Step size :math:`\eta`.
        num_examples: Number :math:`N` of training examples.
        betas: :math:`\beta_1` and :math:`\beta_2`.
        weight_decay: Precision :math:`\delta` of the prior, per example.
        damping: :math:`\gamma`.
        initial_scale: :math:`s` at the start.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> import torch
        >>> from lowland.sam import BSAM, SAM, BayesianAscent
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = BSAM(model.parameters(), lr=0.1, num_examples=100)
        >>> sam = SAM(model, rho=0.01, ascent=BayesianAscent(optimizer))
        >>> optimizer.variance(model.bias)  # at the start s is 1
        tensor([0.0100, 0.0100])
        >>> value = sam.backward(lambda x: model(x).square().mean(), torch.ones(8, 3))
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        num_examples: int,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        damping: float = 0.1,
        initial_scale: float = 1.0,
    ) -> None:
        for name, value in (("lr", lr), ("num_examples", num_examples), ("initial_scale", initial_scale)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        for name, value in (("weight_decay", weight_decay), ("damping", damping)):
            if not value >= 0:
                raise ValueError(f"{name} must be non-negative, got {value}.")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {betas}.")
        defaults = {
            "lr": lr,
            "num_examples": num_examples,
            "betas": betas,
            "weight_decay": weight_decay,
            "damping": damping,
            "initial_scale": initial_scale,
        }
        super().__init__(params, defaults)
        self._found: dict[Tensor, tuple[Tensor, int]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step along ``.grad``.

        Args:
            closure: Evaluates the loss and calls ``backward``, if given.

        Returns:
            What the closure returned; ``None`` without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, working(p.grad), group)
        self._found.clear()
        return loss

    def scale(self, p: Tensor) -> Tensor:
        """The scale :math:`s` of a parameter, in float32 or better.

        Args:
            p: The parameter.
        """
        state = self.state[p]
        if "scale" not in state:
            group = next(g for g in self.param_groups if any(q is p for q in g["params"]))
            state["scale"] = torch.full_like(working(p.detach()), group["initial_scale"])
            state["momentum_buffer"] = torch.zeros_like(state["scale"])
        found: Tensor = state["scale"]
        return found

    def variance(self, p: Tensor) -> Tensor:
        """The posterior variance :math:`1 / (N s)` of a parameter.

        Args:
            p: The parameter.
        """
        group = next(g for g in self.param_groups if any(q is p for q in g["params"]))
        variance: Tensor = 1.0 / (group["num_examples"] * self.scale(p))
        return variance

    def note(self, p: Tensor, g: Tensor) -> None:
        r"""Takes the gradient at :math:`\theta` for the next step; several calls before it are averaged.

        Args:
            p: The parameter.
            g: Its gradient there.
        """
        begins = p.grad is None or not p.grad.any()  # what a step that was skipped left behind is dropped
        total, count = (torch.zeros_like(g), 0) if begins else self._found.get(p, (torch.zeros_like(g), 0))
        self._found[p] = total + g, count + 1

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        s, v = self.scale(p), self.state[p]["momentum_buffer"]
        total, count = self._found.get(p, (g, 1))
        first, second = group["betas"]
        v.lerp_(g + group["weight_decay"] * working(p), 1.0 - first)
        target = s.sqrt() * (total / count).abs() + group["weight_decay"] + group["damping"]
        s.lerp_(target, 1.0 - second)
        p.copy_(working(p) - group["lr"] * v / s)


class BayesianAscent(Part):
    r"""The ascent of Bayesian SAM, :math:`e = \rho\, g / s` (Möllenhoff & Khan, 2023, algorithm 1).

    Its gradient is taken at weights drawn from the posterior, anew for every group; the loss that is
    returned is the one there.

    Args:
        optimizer: The optimizer that learns the posterior.

    Example:
        >>> import torch
        >>> from lowland.sam import BSAM, BayesianAscent, sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss():
        ...     return sum(t.square().sum() for t in w) / 2  # its gradient is w
        >>> optimizer = BSAM(w, lr=0.1, num_examples=10**12, initial_scale=2.0)  # next to no variance
        >>> found = sam_gradient(loss, w, (), rho=0.1, ascent=BayesianAscent(optimizer))
        >>> [round(g.item(), 4) for g in found.gradients]
        [3.15, 4.2]
    """

    random: ClassVar[bool] = True

    def __init__(self, optimizer: BSAM) -> None:
        self.optimizer = optimizer
        self._weights: list[Tensor] = []

    def start(self, weights: Weights) -> Sequence[Tensor]:
        """A draw from the posterior, less its mean."""
        self._weights = list(weights.w)
        return [self._draw(weights, w) for w in weights.w]

    def __call__(self, step: AscentStep) -> Sequence[Tensor] | None:
        """The perturbation."""
        if step.norm == 0.0:
            return None
        return [step.size * g / self.optimizer.scale(w) for w, g in zip(step.w, step.g, strict=True)]

    def remember(self, gradients: Sequence[Tensor]) -> None:
        """Hands the gradient to the optimizer."""
        for w, g in zip(self._weights, gradients, strict=True):
            self.optimizer.note(w, g)

    def _draw(self, weights: Weights, w: Tensor) -> Tensor:
        deviation = self.optimizer.variance(w).sqrt()
        z = torch.empty_like(deviation).normal_(generator=generator(weights, w.device))
        return deviation * z
