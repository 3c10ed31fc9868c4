"""A network's outputs, whatever it is called with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_MASKS = ("mask", "attention_mask")


def outputs_of(model: nn.Module, inputs: Tensor, mask: Tensor | None = None) -> Any:
    """What a network returns for inputs: a tensor, or the ``logits`` of an object that has them.

    Args:
        model: The network.
        inputs: What it is called with.
        mask: Which tokens are no padding. It is handed on as the argument ``mask`` or ``attention_mask``, or
            as the second one that is required; a network with none of these sees the tokens alone.
    """
    name = None if mask is None else mask_argument(model)
    if mask is None or name is None:
        outputs = model(inputs)
    elif name in _MASKS:
        outputs = model(inputs, **{name: mask})
    else:
        outputs = model(inputs, mask)
    return outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)


def mask_argument(model: nn.Module) -> str | None:
    """The argument of ``forward`` that is the mask, if there is one."""
    bound = getattr(model.forward, "__func__", None)
    return _mask_argument(model.forward if bound is None else bound, bound is not None)


@functools.lru_cache
def _mask_argument(forward: Callable[..., Any], is_bound: bool) -> str | None:
    parameters = list(inspect.signature(forward).parameters.values())[is_bound:]
    named = next((p.name for p in parameters if p.name in _MASKS), None)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in (0, 1)]
    return named or (required[1] if len(required) > 1 else None)
