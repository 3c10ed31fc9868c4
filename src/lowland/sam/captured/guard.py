"""What a recorded step took for constant, and whether it still is.

Numbers, modes and hooks that Python reads while a loss runs are not in its graph. All that can be reached
from the loss and the modules that it ran is compared: by identity, in one run through everything, and by
value where something is another thing. What no search can reach (a value that a library keeps, the clock)
is found by running the step as it is now and then.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowland.sam.batched.reachable import Reachable
from lowland.sam.captured.alike import alike, alike_entries
from lowland.sam.objective import Objective
from lowland.sam.private import dispatch_modes, hooks_of_all_modules, saving_hooks


class Guard:
    """What a step depends on beside its inputs, as it is now.

    Args:
        objective: The loss, its parameters and modules.
        parts: Objects of the user's that decide on the step beside them: the ascent.

    Attributes:
        is_whole: Whether everything that can be reached is in it.
    """

    def __init__(self, objective: Objective, parts: Sequence[Any] = ()) -> None:
        self._loss, self._params = objective.loss, list(objective.params)
        self._parts = [(type(p), dict(_attributes(p))) for p in parts]
        modules = list(objective.buffers.modules())
        self._modules, self._classes = modules, [*map(type, modules)]
        reached = Reachable(objective.loss, modules, parts)
        self._containers = [*reached.containers, *chain.from_iterable(map(_of_module, modules))]
        self._held = [_Held(_views(c)) for c in self._containers]
        self._live = [view for held in self._held for view in held.views]
        self._flat = [thing for held in self._held for thing in chain.from_iterable(held.then)]
        self._cells, self._contents = reached.cells, [*map(_content, reached.cells)]
        self._places = reached.places()
        self._named = [space.get(name, _ABSENT) for space, name in self._places]
        self._arrays = [(array, _numbers(array)) for array in reached.arrays]
        self._tensors: list[Tensor] = list(objective.params)
        self._layouts = [*map(_layout, self._tensors)]
        self._alive = hooks_of_all_modules()  # whose identities are part of a kind
        self.is_whole = reached.is_whole

    def know(self, constants: Iterable[Tensor]) -> None:
        """Takes the tensors that a graph has made constants of."""
        self._tensors += constants
        self._layouts = [*map(_layout, self._tensors)]

    def broken(self, objective: Objective, parts: Sequence[Any] = ()) -> str | None:
        """What has changed since, in the user's words; ``None`` if nothing has.

        Args:
            objective: The loss, its parameters and modules, of another step.
            parts: Its objects beside them, of which there are as many.
        """
        params = objective.params
        if len(params) != len(self._params) or not all(map(operator.is_, params, self._params)):
            return "the parameters"
        if not alike(objective.loss, self._loss):
            return "the loss, or what it closes over"
        for now, then in zip(parts, self._parts, strict=True):
            if type(now) is not then[0] or not alike_entries(_attributes(now), then[1]):
                return f"the options of {then[0].__name__}"
        if any(type(m) is not cls for m, cls in zip(self._modules, self._classes, strict=True)):
            return "the class of a module"
        if self._layouts != [*map(_layout, self._tensors)]:
            return "the shape, strides, type or requires_grad of a tensor"
        return self._changed()

    def _changed(self) -> str | None:
        """What is not what it was among the things that the loss reaches."""
        same_size = sum(map(len, self._live)) == len(self._flat)
        if not (same_size and all(map(operator.is_, chain.from_iterable(self._live), self._flat))):
            found = next((name for held in self._held if (name := held.changed()) is not None), None)
            if found is not None:
                return f"{found}, which the loss reaches"
        for cell, then in zip(self._cells, self._contents, strict=True):
            if not alike(_content(cell), then):
                return "a variable that the loss closes over"
        for (space, name), then in zip(self._places, self._named, strict=True):
            if not alike(space.get(name, _ABSENT), then):
                return f"{name}, which the loss names"
        if any(_numbers(now) != then for now, then in self._arrays):
            return "an array that the loss reaches"
        return None


class _Held:
    """What a container holds, and what it held.

    Args:
        views: Its keys and values, which change with it; or itself.
    """

    def __init__(self, views: list[Any]) -> None:
        self.views = views
        self.then = [list(view) for view in views]

    def changed(self) -> str | None:
        """An entry that is not alike, if there is one."""
        pairs = [*zip(self.views, self.then, strict=True)]
        if any(len(now) != len(then) for now, then in pairs):
            return "a container"
        keys, values = self.views[0], pairs[-1]
        for key, now, then in zip(keys, *values, strict=True):
            if not alike(now, then):
                return str(key) if len(pairs) > 1 else "a container"
        return None if all(map(alike, keys, self.then[0])) else "a container"


MOST = 1000
"""Elements of an array that are compared."""

_ABSENT = object()
_LAYOUT = operator.attrgetter("requires_grad", "dtype", "device", "shape")


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout != torch.strided:
        return *_LAYOUT(tensor), tensor.layout
    return *_LAYOUT(tensor), tensor.stride(), tensor.storage_offset()


def modes_of_torch(devices: Iterable[torch.device]) -> Hashable:
    """Modes of torch that decide which operations run, on ``devices`` and on the CPU."""
    kinds = sorted({"cpu", *(device.type for device in devices)})
    cudnn = torch.backends.cudnn
    return (
        *(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) for d in kinds),
        *(
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
            torch.is_anomaly_enabled(),
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
        ),
        *(cudnn.enabled, *(enabled() for enabled in _KERNELS)),
        *(saving_hooks() is None, len(dispatch_modes()), *map(id, hooks_of_all_modules())),
    )


_KERNELS: list[Any] = [
    torch.backends.cuda.flash_sdp_enabled,
    torch.backends.cuda.mem_efficient_sdp_enabled,
    torch.backends.cuda.math_sdp_enabled,
]
"""Which kernels of attention are allowed."""


def _views(container: Any) -> list[Any]:
    """Keys and values of a container, which change with it; or itself."""
    return [container.keys(), container.values()] if isinstance(container, dict) else [container]


def _attributes(part: Any) -> dict[str, Any]:
    return vars(part) if hasattr(part, "__dict__") else {}


def _numbers(array: np.ndarray[Any, Any]) -> Hashable:
    """What an array holds, digit by digit, as far as it is looked at: NaN is itself, and 0 is not -0."""
    return array.shape, array.dtype, array.flat[:MOST].tobytes()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


def _of_module(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """What a module holds beside its attributes."""
    for name in ("_parameters", "_buffers", "_modules", *_HOOKS):
        yield getattr(module, name)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
