"""The mean loss of some examples, from a loss that returns means, one value per example, or sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from lowland.errors import InputError, one_of
from lowland.sam.batch import num_examples
from lowland.sam.objective import Loss
from lowland.sam.touched import require_touched

Reduction = Literal["mean", "sum"]
"""What a loss that returns a scalar has done with the values of its examples."""


def check_reduction(reduction: str) -> None:
    """Refuses reductions that there are not."""
    one_of("reduction", reduction, get_args(Reduction))


def value_and_aux(returned: Any) -> tuple[Any, Any]:
    """What a loss returned, and what beside it, or ``None``."""
    return returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)


def mean_of(value: Any, part: tuple[Any, ...], reduction: Reduction) -> Tensor:
    """The mean loss of the examples ``part``, from the ``value`` that the loss has of them.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is neither a scalar nor, without ``reduction="sum"``, one value per example.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor or (tensor, aux), got {type(value).__name__}.")
    shape = tuple(value.shape)
    if reduction == "sum":
        if shape:
            raise InputError(f"loss must return a scalar with reduction='sum', got shape {shape}.")
        return value / num_examples(part)
    if shape and shape != (num_examples(part),):
        raise InputError(
            f"loss must return a scalar or one value per example, shape ({num_examples(part)},), "
            f"got shape {shape}."
        )
    return value.mean()


def averaged(loss: Loss, reduction: Reduction, *, watched: bool = False) -> Loss:
    """The loss with means as its scalars; if ``watched``, its first call is to look at its arguments."""
    check_reduction(reduction)
    return Averaged(loss, reduction, watched) if watched or reduction == "sum" else loss


@dataclass
class Averaged:
    """A loss whose scalars are means over its examples.

    Attributes:
        loss: The user's.
        reduction: What its scalars are.
        watched: Whether the next call is to show that it looks at its arguments.
    """

    loss: Loss
    reduction: Reduction
    watched: bool

    def __call__(self, *group: Any) -> Any:
        """What the loss returns, with its mean."""
        returned = self._watched(group) if self.watched else self.loss(*group)
        if self.reduction == "mean":
            return returned
        value, aux = value_and_aux(returned)
        mean = mean_of(value, group, self.reduction)
        return mean if value is returned else (mean, aux)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the loss's own: an engine asks whether it is compiled."""
        if name == "loss":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.loss, name)

    def _watched(self, group: tuple[Any, ...]) -> Any:
        with require_touched(group, self.loss):
            returned = self.loss(*group)
        self.watched = False
        return returned
