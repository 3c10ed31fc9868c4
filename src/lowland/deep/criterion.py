"""What is said of outputs, whatever is trained on: a loss, and errors where targets are classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lowland.deep.config import TrainConfig
from lowland.deep.functions import function_named
from lowland.deep.losses import LossFunction, as_logits, cross_entropy, squared_errors


@dataclass(frozen=True)
class Criterion:
    """The loss that is reported and measured, and whether outputs can be wrong.

    Attributes:
        loss: ``(outputs, targets)`` to a loss per example, or to their mean.
        name: ``ce``, ``mse``, or the user's function.
        has_errors: Whether targets are classes and outputs their logits.
    """

    loss: LossFunction
    name: str = "ce"
    has_errors: bool = True

    @classmethod
    def of(cls, config: TrainConfig, *, has_errors: bool = True) -> Criterion:
        """Of a run: the cross-entropy of every loss that is made of it, else the run's own loss.

        Args:
            config: The run.
            has_errors: Whether its targets are classes and its outputs their logits.
        """
        own = config.has_own_loss or config.loss == "mse"
        return replace(cls.named(config.loss if own else "ce"), has_errors=has_errors)

    @classmethod
    def named(cls, name: str) -> Criterion:
        """Of a name: ``ce``, ``mse``, or ``package.module:function``; with errors.

        Raises:
            InputError: If there is no such function.
        """
        ours: dict[str, LossFunction] = {"ce": cross_entropy, "mse": squared_errors}
        return cls(ours[name] if name in ours else function_named(name, "loss"), name)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One value per example; each has the mean of a loss that is one."""
        found = self.loss(outputs, targets)
        return found if found.dim() else found.expand(len(targets))

    def notes(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Whether each example is misclassified, as ``error``; nothing where that has no meaning."""
        return {"error": is_wrong(outputs, targets)} if self.has_errors else {}


CROSS_ENTROPY = Criterion(cross_entropy)


def are_logits(outputs: Any, examples: int, classes: int) -> bool:
    """Whether outputs are a row of logits for each example; one alone is the difference of two."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != examples:
        return False
    return outputs.shape[1] >= classes or (outputs.shape[1] == 1 and classes == 2)


def is_wrong(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each example is misclassified."""
    return as_logits(outputs.detach()).argmax(1) != labels
