"""The private names of torch that every call uses, and what is done in a torch without them.

The look at many groups at once needs more of them: ``batched/level.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

_core: Any = torch._C
_transforms: Any = getattr(_core, "_functorch", None)
_autograd: Any = getattr(_core, "_autograd", None)
_modules: Any = torch.nn.modules.module


def _named(owner: Any, name: str, otherwise: Any) -> Callable[..., Any]:
    """What torch calls so, looked up once: the functions below are called for every operation of a loss."""
    found: Callable[..., Any] = getattr(owner, name, lambda *_: otherwise)
    return found


_is_batched = _named(_transforms, "is_batchedtensor", False)
_is_wrapped = _named(_transforms, "is_functorch_wrapped_tensor", False)
_level = _named(_transforms, "maybe_current_level", None)
_leave_vmap = _named(_transforms, "_vmap_decrement_nesting", None)
_hooks = _named(_autograd, "_top_saved_tensors_default_hooks", None)
_leave_hooks = _named(_autograd, "_pop_saved_tensors_default_hooks", None)
_function_state = _named(_core, "_get_torch_function_state", None)
_len_functions = _named(_core, "_len_torch_function_stack", 0)
_len_dispatch = _named(_core, "_len_torch_dispatch_stack", 0)
_dispatch_at = _named(_core, "_get_dispatch_stack_at", None)


def is_in_vmap(tensor: Tensor) -> bool:
    """Whether a tensor stands for one of many, inside ``vmap``."""
    return bool(_is_batched(tensor))


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` made a tensor."""
    return bool(_is_wrapped(tensor))


def transform_level() -> int | None:
    """The innermost transform of ``torch.func`` that is active."""
    level: int | None = _level()
    return level


def leave_transform() -> None:
    """Ends the innermost ``vmap``, which an interrupt left open."""
    _leave_vmap()


def saving_hooks() -> Any:
    """The innermost hooks on what is saved for a backward pass."""
    return _hooks(True)


def leave_saving_hooks() -> None:
    """Takes them away."""
    _leave_hooks()


def dispatch_modes() -> list[Any]:
    """The modes that see torch's operations, the outermost first."""
    return [_dispatch_at(i) for i in range(_len_dispatch())]


def hooks_of_all_modules() -> tuple[Any, ...]:
    """The hooks that every module runs, but those of this library."""
    names = "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks"
    hooks = (getattr(_modules, name, {}) for name in (*names, "_global_backward_pre_hooks"))
    found = (hook for each in hooks for hook in each.values())
    return tuple(h for h in found if not str(getattr(h, "__module__", "")).startswith("lowland."))


class ModeStacks:
    """The modes that see torch's functions and operations, as they are now."""

    def __init__(self) -> None:
        self._state = _function_state()
        self._functions, self._dispatch = _len_functions(), _len_dispatch()

    def restore(self) -> None:
        """Takes away those that came since; once more is as good."""
        if self._state is not None:
            _core._set_torch_function_state(self._state)
        while _len_functions() > self._functions:
            _core._pop_torch_function_stack()
        while _len_dispatch() > self._dispatch:
            _core._pop_torch_dispatch_stack(None)


def is_innermost(mode: Any) -> bool:
    """Whether a mode is the last one that was entered; also where torch does not say so."""
    if not hasattr(_core, "_get_function_stack_at"):
        return True
    depth = _len_functions()
    return depth > 0 and _core._get_function_stack_at(depth - 1) is mode


def unseen_by_modes() -> Any:
    """A block whose functions no mode and no subclass sees."""
    return _core.DisableTorchFunction()


def outside_of_transforms() -> AbstractContextManager[object]:
    """A block that no transform of ``torch.func`` is active in; as it is, in a torch that cannot say so."""
    names = "peek_interpreter_stack", "pop_dynamic_layer_stack", "push_dynamic_layer_stack"
    known = _transforms is not None and all(hasattr(_transforms, name) for name in names)
    return _without_layers() if known else nullcontext()


@contextmanager
def _without_layers() -> Iterator[None]:
    layers: list[Any] = []
    try:
        while _transforms.peek_interpreter_stack() is not None:
            layers.append(_transforms.pop_dynamic_layer_stack())
        yield
    finally:
        while layers:
            _transforms.push_dynamic_layer_stack(layers.pop())


_AROUND = "_pre_forward", "_post_forward"
"""What ``DistributedDataParallel`` does before and after its module runs."""


def forward_of_nothing(module: Any, through: Tensor) -> Tensor:
    """What a forward pass does beside running the module, and returns if that returns ``through``."""
    if not _has_sides(module):
        return through
    module._pre_forward(through)
    found: Tensor = module._post_forward(through)
    return found


def begin_passing_by(module: DistributedDataParallel) -> None:
    """From now on its forward passes only run its module, on its device.

    In a torch that does not part a forward pass so, they are what they were: right where all processes
    make as many.
    """
    if _has_sides(module):
        vars(module).update(zip(_AROUND, (functools.partial(_moved, module), _as_it_is), strict=True))


def end_passing_by(module: DistributedDataParallel) -> None:
    """They are what they were; once more is as good."""
    for name in _AROUND:
        vars(module).pop(name, None)


def is_passed_by(module: DistributedDataParallel) -> bool:
    """Whether its forward passes only run its module."""
    return _AROUND[0] in vars(module)


def is_joining(module: Any) -> bool:
    """Whether a module is in a block of ``Join``."""
    return bool(getattr(getattr(module, "_join_config", None), "enable", False))


def prepare_backward(module: DistributedDataParallel, value: Tensor) -> None:
    """Takes the parameters that ``value`` does not depend on for unused in the backward pass that comes."""
    module.reducer.prepare_for_backward([value])


def _has_sides(module: DistributedDataParallel) -> bool:
    return all(hasattr(type(module), name) for name in _AROUND)


def _moved(module: Any, *inputs: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Arguments on the device of a module, if it is one that moves them."""
    if not module.device_ids:
        return inputs, kwargs
    device = torch.device(module.device_type, module.device_ids[0])
    moved, moved_kwargs = module.to_kwargs(inputs, kwargs, device)
    return (moved or ((),))[0], (moved_kwargs or ({},))[0]


def _as_it_is(output: Any) -> Any:
    return output
