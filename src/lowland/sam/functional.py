"""A loss in two halves, whose gradient is functional SAM's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Functional:
    r"""A loss given as the outputs of a network and a criterion, for functional SAM.

    With the outputs :math:`F(w)`, the criterion :math:`\ell`, and a group's perturbation :math:`e` along its
    gradient :math:`g`, the gradient is that of Singh, Mobahi, Agarwala and Dauphin ("Avoiding spurious
    sharpness minimization broadens applicability of SAM", 2025, arXiv 2502.02407),

    .. math::
        J_F(w + e)^\top r, \qquad r = \frac{\partial \ell}{\partial F}\bigl(F(w)\bigr), \qquad
        e = \rho\, \frac{g}{\|g\|_2}, \quad g = J_F(w)^\top r:

    the Jacobian is taken at :math:`w + e`, the gradient by the outputs at :math:`w`. To first order in ρ, SAM
    adds :math:`\rho H g / \|g\|_2` to the gradient, and this the part of the Hessian :math:`H` that is not
    Gauss-Newton's, which a network that is linear in its weights does not have. Of the paper its abstract was
    read, and this equation as others quote it. What follows is our reading. Several steps climb on the true
    loss, and the last pass alone is functional. Every m examples have their own :math:`e` and :math:`r`. An
    l2 term is no part of the criterion, and is differentiated at :math:`w + e` as in SAM. After a climb on
    other examples, or one that needs no gradient, :math:`r` is that of the group's own examples at
    :math:`w`; for the latter this is one more forward pass.

    Called by itself it is an ordinary loss, for evaluation and for measures.

    Args:
        outputs: ``outputs(*batch)`` is what the network returns: a tensor, or nested containers of tensors,
            as the models of ``transformers`` return them.
        criterion: ``criterion(outputs, *batch)`` is the loss of it, a value that
            :func:`~lowland.sam.sam_gradient` takes; parameters reach it through the outputs only. It runs at
            :math:`w`; with ``diagnostics`` also at :math:`w + e`, to tell the loss there.

    Raises:
        TypeError: If one of them is no function.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from lowland.sam import SAM, Functional
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> sam = SAM(model, rho=0.1, m=8)
        >>> loss = Functional(lambda x, y: model(x), lambda logits, x, y: F.cross_entropy(logits, y))
        >>> x, y = torch.randn(32, 3), torch.randint(2, (32,))
        >>> torch.allclose(sam.backward(loss, x, y), loss(x, y))
        True
    """

    outputs: Callable[..., Any]
    criterion: Callable[..., Any]

    def __post_init__(self) -> None:
        for name in ("outputs", "criterion"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"{name} must be a function, Functional(lambda x, y: model(x), lambda logits, x, y: "
                    f"criterion(logits, y)), got {type(getattr(self, name)).__name__}."
                )

    def __call__(self, *batch: Any) -> Any:
        """The loss.

        Args:
            batch: The examples.
        """
        return self.criterion(self.outputs(*batch), *batch)


def functions_of(loss: Any) -> tuple[Any, ...]:
    """The functions that a loss consists of: the halves of one that has some."""
    return (loss.outputs, loss.criterion) if isinstance(loss, Functional) else (loss,)
