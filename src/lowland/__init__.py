"""Lowland: sharpness-aware minimization as a gradient.

Names come from :mod:`lowland.sam`, which is imported when one of them is first asked for: it imports torch,
which takes seconds, and ``lowland --help`` does not need it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowland import presets
    from lowland.sam import (
        L2,
        SAM,
        Adaptive,
        ClippedUnnormalized,
        MicroBatches,
        SAMOptimizer,
        Unnormalized,
        perturbed,
        sam_gradient,
    )

__all__ = [
    "L2",
    "SAM",
    "Adaptive",
    "ClippedUnnormalized",
    "MicroBatches",
    "SAMOptimizer",
    "Unnormalized",
    "perturbed",
    "presets",
    "sam_gradient",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Imports :mod:`lowland.sam` for the names that come from it, and for itself."""
    if name not in {*__all__, "sam"}:
        raise AttributeError(f"module 'lowland' has no attribute {name!r}")
    from importlib import import_module

    if name in {"presets", "sam"}:
        return import_module(f"lowland.{name}")
    sam = import_module("lowland.sam")
    globals().update({known: getattr(sam, known) for known in __all__ if known != "presets"})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "sam"})
