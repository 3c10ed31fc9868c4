"""What was decided for a loss and its shapes, in the first call."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Verdict:
    """How the groups of a call are run.

    Attributes:
        chunk: How many groups at once; 0 for one after the other, by the loop.
    """

    chunk: int


_verdicts: Any = WeakIdKeyDictionary()


def verdicts_of(params: list[Tensor]) -> dict[Hashable, Verdict]:
    """The verdicts on losses of these parameters; forgotten with them."""
    found: dict[Hashable, Verdict] = _verdicts.setdefault(params[0], {})
    return found


def loss_key(loss: Any) -> Hashable:
    """What is the same for a loss that is defined anew in each step."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    function = getattr(loss, "__func__", loss)
    code = getattr(function, "__code__", None)
    return id(type(loss)) if code is None else (code.co_filename, code.co_firstlineno, hash(code))
