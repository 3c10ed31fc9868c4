"""Every trap of this folder and what must become of it: the loop's result, or a refusal that names its cause.

A trap is a function that makes a model, a loss and a batch. Its decorator says the outcome; there is no
decorator for a trap that may be either.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Making = Callable[[], tuple[nn.Module, Callable[..., Any], tuple[Any, ...]]]

TRAPS: dict[str, "Trap"] = {}
"""By name."""

_NO_CAUSE = ("", "an operation", "a parameter", "a buffer", "linear (whatever torch says of it)")


@dataclass(frozen=True)
class Exact:
    """The loop's gradients, loss and buffers."""

    tolerance: float = 1e-10


@dataclass(frozen=True)
class Refused:
    """Not run at once.

    Attributes:
        reason: Regular expression of all that the user is told, from its first to its last letter; what
            is torch's, in parentheses, only as far as it names the cause.
    """

    reason: str

    def __post_init__(self) -> None:
        loose = next((said for said in _NO_CAUSE if self.tells(said)), None)
        if loose is not None:
            raise ValueError(f"reason must pin a cause, got {self.reason!r}, which also fits {loose!r}.")

    def tells(self, said: str) -> bool:
        return re.fullmatch(self.reason, said) is not None


Outcome = Exact | Refused

EXACT = Exact()


@dataclass(frozen=True)
class Trap:
    """A model, a loss and a batch, and what must become of them.

    Attributes:
        make: Makes them anew.
        usual: Where the batch is cut and the module is handed over.
        without_module: Where only its parameters are handed over.
        alone: Where one group has all examples.
    """

    make: Making
    usual: Outcome
    without_module: Outcome
    alone: Outcome

    @property
    def heading(self) -> str:
        """The module of this folder that it stands in."""
        return self.make.__module__.rsplit(".", 1)[-1]

    def refusals(self) -> list[Refused]:
        each = (self.usual, self.without_module, self.alone)
        return [outcome for outcome in each if isinstance(outcome, Refused)]


def exact(make: Making) -> Making:
    """The engine must run it as the loop does."""
    return exact_to(EXACT.tolerance)(make)


def exact_to(tolerance: float) -> Callable[[Making], Making]:
    """The same for losses in half precision, whose roundings differ between engines."""
    outcome = Exact(tolerance)
    return _registered(outcome, outcome, outcome)


def refused(
    reason: str, *, without_module: str | None = None, alone: Exact | None = None
) -> Callable[[Making], Making]:
    """The engine must refuse it for ``reason``.

    Args:
        reason: What the user is told.
        without_module: What, where the module is not handed over and something else is noticed.
        alone: ``EXACT`` where nothing is wrong with a single group.
    """
    usual = Refused(reason)
    unseen = usual if without_module is None else Refused(without_module)
    return _registered(usual, unseen, usual if alone is None else alone)


def _registered(usual: Outcome, without_module: Outcome, alone: Outcome) -> Callable[[Making], Making]:
    def register(make: Making) -> Making:
        name = make.__name__
        if name in TRAPS:
            raise ValueError(f"name of a trap must be its own, got {name!r} twice.")
        TRAPS[name] = Trap(make, usual, without_module, alone)
        return make

    return register
