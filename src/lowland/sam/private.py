"""The private names of torch that every call uses, and what is done in a torch without them.

The look at many groups at once needs more of them: ``batched/level.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_core: Any = torch._C
_transforms: Any = getattr(_core, "_functorch", None)
_autograd: Any = getattr(_core, "_autograd", None)


def is_in_vmap(tensor: Tensor) -> bool:
    """Whether a tensor stands for one of many, inside ``vmap``."""
    return bool(_named(_transforms, "is_batchedtensor", _no)(tensor))


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` made a tensor."""
    return bool(_named(_transforms, "is_functorch_wrapped_tensor", _no)(tensor))


def transform_level() -> int | None:
    """The innermost transform of ``torch.func`` that is active."""
    level: int | None = _named(_transforms, "maybe_current_level", _none)()
    return level


def leave_transform() -> None:
    """Ends the innermost ``vmap``, which an interrupt left open."""
    _named(_transforms, "_vmap_decrement_nesting", _none)()


def saving_hooks() -> Any:
    """The innermost hooks on what is saved for a backward pass."""
    return _named(_autograd, "_top_saved_tensors_default_hooks", _none)(True)


def leave_saving_hooks() -> None:
    """Takes them away."""
    _named(_autograd, "_pop_saved_tensors_default_hooks", _none)()


class ModeStacks:
    """The modes that see torch's functions and operations, as they are now."""

    def __init__(self) -> None:
        self._state = _named(_core, "_get_torch_function_state", _none)()
        self._functions, self._dispatch = _len_functions(), _len_dispatch()

    def restore(self) -> None:
        """Takes away those that came since; once more is as good."""
        if self._state is not None:
            _core._set_torch_function_state(self._state)
        while _len_functions() > self._functions:
            _core._pop_torch_function_stack()
        while _len_dispatch() > self._dispatch:
            _core._pop_torch_dispatch_stack()


def is_innermost(mode: Any) -> bool:
    """Whether a mode is the last one that was entered; also where torch does not say so."""
    if not hasattr(_core, "_get_function_stack_at"):
        return True
    depth = _len_functions()
    return depth > 0 and _core._get_function_stack_at(depth - 1) is mode


def unseen_by_modes() -> Any:
    """A block whose functions no mode and no subclass sees."""
    return _core.DisableTorchFunction()


def _len_functions() -> int:
    return int(_named(_core, "_len_torch_function_stack", _zero)())


def _len_dispatch() -> int:
    return int(_named(_core, "_len_torch_dispatch_stack", _zero)())


def _named(owner: Any, name: str, otherwise: Any) -> Any:
    return getattr(owner, name, otherwise)


def _no(_: Any) -> bool:
    return False


def _none(*_: Any) -> None:
    return None


def _zero() -> int:
    return 0
