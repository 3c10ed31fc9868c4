"""Losses that autocast runs in float32 where it meets them: ``vmap`` takes them apart before it does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowland.sam.batched.outside import tensors_in
from lowland.sam.batched.precision import autocast_off
from lowland.sam.batched.tape import Tape, rule
from lowland.sam.containers import mapped

_TAKEN_APART = (
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy_with_logits,
    F.l1_loss,
    F.cosine_embedding_loss,
    F.hinge_embedding_loss,
    F.poisson_nll_loss,
)
"""Those of autocast's list, https://docs.pytorch.org/docs/stable/amp.html, which do not reach it."""


def _in_float(function: Callable[..., Any], tape: Tape, *args: Any, **kwargs: Any) -> Any:
    floats = [t for t in tensors_in((args, kwargs)) if t.is_floating_point()]
    if not floats or not torch.is_autocast_enabled(floats[0].device.type):
        return NotImplemented
    args, kwargs = mapped(lambda t: _at_least_float(tape, t), (args, kwargs))
    with autocast_off(floats[0]):
        return function(*args, **kwargs)


def _at_least_float(tape: Tape, tensor: Tensor) -> Tensor:
    tape.outside.read(tensor)
    found: Tensor = tape.substituted(tensor)
    is_low = found.dtype in {torch.float16, torch.bfloat16}
    return found.float() if is_low else found


for _function in _TAKEN_APART:
    rule(_function)(partial(_in_float, _function))
