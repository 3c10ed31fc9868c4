"""What was decided for a loss and its shapes, and when it is asked again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

MOST = 64
"""Verdicts on one model that are remembered; the oldest goes first."""

LONGEST = 1024
"""Calls after which a loss that could not be run at once is tried again."""


class Fingerprint:
    """What a verdict depends on in the modules that ran: their parts, hooks and modes.

    A module without parameters, buffers and parts that is gone was made by the loss, for one pass: that it is
    gone changes nothing.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._found = [(weakref.ref(m), _of_module(m), _is_bare(m)) for m in modules]

    def still_holds(self) -> bool:
        """Whether nothing of it has changed."""
        return all(
            is_bare if (m := ref()) is None else _of_module(m) == found for ref, found, is_bare in self._found
        )


def _is_bare(m: nn.Module) -> bool:
    held = (*m._parameters.values(), *m._buffers.values(), *m._modules.values())
    return all(thing is None for thing in held)


def _of_module(m: nn.Module) -> Hashable:
    hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    return (
        *(
            type(m),
            m.training,
            getattr(m, "gradient_checkpointing", None),  # as the models of transformers call it
            *map(tuple, hooks),
            tuple(m._buffers.keys()),
            tuple(map(id, m._modules.values())),
        ),
        tuple((id(p), p.requires_grad) for p in m._parameters.values() if p is not None),
    )


@dataclass
class Verdict:
    """How the groups of a call are run.

    Attributes:
        chunk: How many groups at once; 0 for one after the other, by the loop.
        fingerprint: What it depends on in the modules.
        tried: Whether the loss was run for one group, and can be run at once.
        failures: How often it did not hold lately.
        waits: Calls that the loop runs before the loss is tried again.
    """

    chunk: int
    fingerprint: Fingerprint
    tried: bool = False
    failures: int = 0
    waits: int = 0

    def failed(self) -> None:
        """The loss could not be run at once: not every time is it tried again."""
        self.failures += 1
        self.waits = min(2 ** (self.failures - 1) - 1, LONGEST)

    def held(self) -> None:
        """The loss was run at once."""
        self.failures //= 2


@dataclass
class Verdicts:
    """The verdicts on losses of the same parameters."""

    _found: OrderedDict[Hashable, Verdict] = field(default_factory=OrderedDict)

    def get(self, key: Hashable) -> Verdict | None:
        """The verdict, if nothing that it depends on has changed."""
        found = self._found.get(key)
        return found if found is not None and found.fingerprint.still_holds() else None

    def settle(self, key: Hashable, verdict: Verdict) -> Verdict:
        """Keeps a verdict."""
        self._found[key] = verdict
        self._found.move_to_end(key)
        if len(self._found) > MOST:
            self._found.popitem(last=False)
        return verdict


_verdicts: Any = WeakIdKeyDictionary()


def verdicts_of(params: list[Tensor]) -> Verdicts:
    """The verdicts on losses of these parameters; forgotten with them."""
    found: Verdicts = _verdicts.setdefault(params[0], Verdicts())
    return found
