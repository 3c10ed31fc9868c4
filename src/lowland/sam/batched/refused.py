"""What the batched engine does not run."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowland.sam.buffers import is_compiled
from lowland.sam.functional import functions_of
from lowland.sam.objective import Objective
from lowland.sam.place import place_of
from lowland.sam.randomness import RandomState
from lowland.sam.said import warn_once
from lowland.sam.unbatchable import Unbatchable


def refuse_modules(objective: Objective) -> None:
    """Refuses modules that would run, or leave behind, what is only meant for the inside of a pass."""
    compiled = _compiled(objective)
    if compiled is not None:
        text = f"{compiled} was run as it was written: engine='loop' runs what the compiler made of it."
        warn_once(objective.params[0], ("compiled", compiled), text)
    for module in () if objective.buffers.module is None else objective.buffers.module.modules():
        _refuse(module)


def refuse_shared_memory(params: Sequence[Tensor]) -> None:
    """Refuses parameters of which one moves when another does."""
    memory = [place_of(p) for p in params if p.numel() > 0]
    if len(set(memory)) < len(memory):
        raise Unbatchable("parameters that share their memory")


def require_known(changed: Sequence[tuple[str, Tensor | None]], known: set[int]) -> None:
    """Refuses changes of buffers other than those that were followed."""
    for name, buffer in changed:
        if id(buffer) not in known:
            raise Unbatchable(f"a change of the buffer {name}")


def require_no_draws(before: RandomState, groups: int) -> None:
    """Refuses draws of generators that ``vmap`` does not know: one would serve all groups."""
    whose = before.drawn_from() if groups > 1 else None
    if whose is not None:
        raise Unbatchable(f"a draw from {whose} random generator, of which one would serve all groups")


def require_gone(results: Sequence[weakref.ref[Tensor]]) -> None:
    """Refuses a loss that keeps a tensor of a pass, which means nothing outside it."""
    if any(r() is not None for r in results):
        gc.collect()
    if any(r() is not None for r in results):
        raise Unbatchable("a tensor of the pass that is kept after it, as an attribute or in a list")


def _compiled(objective: Objective) -> str | None:
    """What is compiled: the compiler does not see through passes over all groups."""
    if any(hasattr(function, "_torchdynamo_orig_callable") for function in functions_of(objective.loss)):
        return "a compiled loss"
    module = objective.buffers.module
    found = [] if module is None else [m for m in module.modules() if is_compiled(m)]
    return f"a compiled module, {type(getattr(found[0], '_orig_mod', found[0])).__name__}," if found else None


def _refuse(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise Unbatchable(f"a scripted module, {type(module).__name__}")
    if module._backward_hooks or module._backward_pre_hooks:
        raise Unbatchable(f"backward hooks of a module, {type(module).__name__}")
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm | WeightNorm):
            raise Unbatchable(
                f"torch.nn.utils' {type(hook).__name__}, which sets attributes (its parametrization does not)"
            )
