"""Calls and assignments that mean something else than they say, each answered by one sentence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import ParamSpec

from torch.optim import Optimizer

from lowland.sam.choice import OF_SAM
from lowland.sam.part import brief

P = ParamSpec("P")

OWN = ("module", "steps_done", "most_examples", "last_diagnostics")
"""Attributes of a SAM that are no options."""

_MEANT = {"step": ["steps_done"], "adaptive": ["ascent, which lowland.presets.asam sets"]}


def understood(init: Callable[P, None]) -> Callable[P, None]:
    """``SAM.__init__``, with an answer for the calls that mean another library's, or a number."""

    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        _refuse_arguments(args[1:], options)
        _refuse_options(options)
        init(*args, **options)

    return checked


def unknown(name: str) -> str:
    """Why ``SAM`` is not given an option that it does not have, with the nearest that it has."""
    nearest = _MEANT.get(name) or get_close_matches(name, [*OF_SAM, *OWN], n=1, cutoff=0.65)
    return (
        f"SAM must be given options that it has, got {name}{f'; nearest: {nearest[0]}' if nearest else ''}."
    )


def check_option(name: str, value: object) -> None:
    """Refuses an option that there is not, and a value that is none of one."""
    if name not in OF_SAM:
        raise TypeError(unknown(name))
    OF_SAM[name](name, value)


def shown_options(owner: object) -> str:
    """The options that are not at their defaults, as a call has them."""
    defaults = inspect.signature(type(owner)).parameters
    values = {name: getattr(owner, name) for name in OF_SAM if name in defaults}
    changed = {name: value for name, value in values.items() if value != defaults[name].default}
    return ", ".join(f"{name}={brief(value)}" for name, value in changed.items())


def _refuse_arguments(args: Sequence[object], options: Mapping[str, object]) -> None:
    if len(args) > 1 and isinstance(args[1], (Real, str)):
        raise TypeError(f"rho must be given by its name, SAM(model, rho={args[1]!r}), got it without.")
    if len(args) > 1 or "base_optimizer" in options:
        raise TypeError(
            "SAM must be given the model and stands beside the optimizer, got an optimizer to wrap: "
            "lowland.sam.davda54.SAM takes one, SAM(params, base_optimizer, rho=...)."
        )
    if args and isinstance(args[0], Optimizer):
        raise TypeError(
            "SAM must be given the model and stands beside the optimizer, got one of class "
            f"{type(args[0]).__name__}: lowland.SAMOptimizer(optimizer, rho=...) wraps one."
        )


def _refuse_options(options: Mapping[str, object]) -> None:
    if "adaptive" in options:
        raise TypeError(
            "SAM must be given an ascent to be adaptive, as lowland.presets.asam(model, rho=0.5) does, "
            f"got adaptive={options['adaptive']!r}."
        )
    for name in options:
        if name != "params" and name not in OF_SAM:
            raise TypeError(unknown(name))
