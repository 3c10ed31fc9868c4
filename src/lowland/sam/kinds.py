"""Which protocols a part follows, asked once for each class: to ask takes longer than a small layer."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

_known: WeakKeyDictionary[type, dict[type, bool]] = WeakKeyDictionary()


def is_a(part: Any, kind: Any) -> bool:
    """Whether ``part`` follows a protocol that can be checked at run time."""
    kinds = _known.setdefault(type(part), {})
    if kind not in kinds:
        kinds[kind] = isinstance(part, kind)
    return kinds[kind]
