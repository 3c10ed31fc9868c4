"""Which values an option may have, each refused by one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal, get_args

from lowland.sam.buffers import BatchNormStats
from lowland.sam.objective import Reduction

Engine = Literal["auto", "loop", "batched"]
"""``loop``: one group after the other; ``batched``: all at once; ``auto``: whichever is faster."""

Capture = Literal["off", "replay", "compile"]
"""``replay``: steps at many groups at once are recorded and replayed; ``compile``: and compiled."""

Check = Callable[[str, Any], None]


def non_negative(name: str, value: Any) -> None:
    """Refuses all but numbers of at least 0."""
    _require_number(name, value, "a number")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be non-negative and finite, got {value}.")


def positive(name: str, value: Any) -> None:
    """Refuses all but numbers above 0."""
    _require_number(name, value, "a number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def count(name: str, value: Any) -> None:
    """Refuses all but 1, 2, 3 and so on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}.")


def count_or_none(name: str, value: Any) -> None:
    """Refuses all but positive whole numbers and ``None``."""
    if value is not None:
        count(name, value)


def among(choices: Any) -> Check:
    """Refuses all but the values of a ``Literal``."""
    valid = get_args(choices)

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in valid:
            raise ValueError(f"{name} must be one of {valid}, got {value!r}.")

    return check


def is_bytes(name: str, value: Any) -> None:
    """Refuses all but positive whole numbers and ``None``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and value > 0):
        raise ValueError(f"{name} must be a positive number of bytes or None, got {value!r}.")


def is_switch(name: str, value: Any) -> None:
    """Refuses all but true and false."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def is_radius(name: str, value: Any) -> None:
    """Refuses all but a radius or a schedule of one."""
    if not callable(value) or isinstance(value, type):
        _require_number(name, value, "a number or a function of the number of steps done")
        non_negative(name, value)


def is_names(name: str, value: Any) -> None:
    """Refuses all but lists of strings."""
    if isinstance(value, str) or not _holds_strings(value):
        raise TypeError(f"{name} must be a list of names of entries, got {value!r}.")


def is_patterns(name: str, value: Any) -> None:
    """Refuses all but a string and lists of them."""
    if value is not None and not isinstance(value, str) and not _holds_strings(value):
        raise TypeError(f"{name} must be a name, a pattern or a list of them, got {value!r}.")


def is_ascent(name: str, value: Any) -> None:
    """Refuses all but objects that climb; a word is answered by what it may mean."""
    if isinstance(value, str):
        word = get_close_matches(value.lower(), _MEANT, n=1) or ["l2"]
        raise TypeError(f"{name} must be an object such as {_MEANT[word[0]]}, got {value!r}.")
    if isinstance(value, type):
        raise TypeError(f"{name} must be an object such as {value.__name__}(), got the class.")
    if value is not None and not callable(value) and not hasattr(value, "without_gradient"):
        raise TypeError(f"{name} must be an Ascent or a BlindAscent, got {type(value).__name__}.")


def is_source(name: str, value: Any) -> None:
    """Refuses all but objects that give batches."""
    if isinstance(value, type) or (value is not None and not hasattr(value, "ascent_batch")):
        raise TypeError(
            f"{name} must have a method ascent_batch, as lowland.sam.PreviousBatch() and "
            f"lowland.sam.FromLoader(loader), got {_class(value)}."
        )


def is_rule(name: str, value: Any) -> None:
    """Refuses all but functions, and classes of them."""
    if value is not None and (not callable(value) or isinstance(value, type)):
        raise TypeError(f"{name} must be a function or an object that is one, got {_class(value)}.")


def is_any(name: str, value: Any) -> None:
    """Refuses nothing here."""


OF_SAM: dict[str, Check] = {
    "rho": is_radius,
    "m": count_or_none,
    "ascent": is_ascent,
    "perturb": is_patterns,
    "source": is_source,
    "combine": is_rule,
    "steps": count,
    "step_size": positive,
    "l2": non_negative,
    "bn_stats": among(BatchNormStats),
    "weight": is_rule,
    "reduction": among(Reduction),
    "shared": is_names,
    "rows": is_names,
    "process_group": is_any,
    "engine": among(Engine),
    "max_memory": is_bytes,
    "diagnostics": is_switch,
    "capture": among(Capture),
}
"""The options of :class:`~lowland.SAM`."""

_MEANT = {
    **dict.fromkeys(("l2", "sam", "euclidean"), "lowland.L2()"),
    **dict.fromkeys(("adaptive", "asam"), "lowland.Adaptive(), which is presets.asam"),
    **dict.fromkeys(("unnormalized", "usam"), "lowland.Unnormalized(), which is presets.usam"),
    **dict.fromkeys(("clipped", "clippedunnormalized"), "lowland.ClippedUnnormalized()"),
    **dict.fromkeys(("unified", "unified_sam"), "lowland.sam.Unified(), which is presets.unified_sam"),
    **dict.fromkeys(("random", "noise"), "lowland.sam.Random(), which is presets.random"),
    **dict.fromkeys(
        ("momentum", "alongmomentum", "momentum_sam"),
        "lowland.sam.AlongMomentum(optimizer), which is presets.momentum_sam",
    ),
    **dict.fromkeys(("friendly", "friendly_sam"), "lowland.sam.Friendly(), which is presets.friendly_sam"),
    **dict.fromkeys(
        ("subset", "randomsubset", "esam"), "lowland.sam.RandomSubset(0.5), which is presets.esam"
    ),
    **dict.fromkeys(
        ("bayesian", "bayesianascent", "bsam"),
        "lowland.sam.BayesianAscent(optimizer), which is presets.bsam",
    ),
}


def _require_number(name: str, value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {what}, got {_class(value)}.")


def _holds_strings(value: Any) -> bool:
    return isinstance(value, Collection) and all(isinstance(entry, str) for entry in value)


def _class(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"{value!r}"
