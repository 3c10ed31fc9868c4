"""Everything that a call could leave changed, seen from outside: nothing here asks lowland's own code."""

import contextvars
import random
import signal
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.nn.utils import parametrize

from faulted.scenes import Session
from lowland.sam import weights_are_perturbed

World = dict[str, Any]
"""What was found, by name. The first word of a name says of which sort it is."""


class Watched:
    """A session together with what it was made of, so that what is replaced can be told from what is kept.

    Args:
        session: The session, before the call.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._attributes = {path: dict(vars(m)) for path, m in session.module.named_modules()}
        self._dicts = {
            f"{path}.{name}": dict(value)
            for path, attributes in self._attributes.items()
            for name, value in attributes.items()
            if isinstance(value, dict)
        }
        self._grads = [p.grad for p in session.module.parameters()]
        self._storages = {name: t.data_ptr() for name, t in _state(session.module)}
        names = [name for name in vars(session.sam) if not name.startswith("_")]
        self._options = {name: getattr(session.sam, name) for name in names}
        self._given = list(_leaves(session.given))

    def world(self) -> World:
        """Everything, now."""
        surroundings = {**_of_torch(), **_of_python(), "perturbed": weights_are_perturbed()}
        with torch._C.DisableTorchFunction():  # a mode that was left behind is not to be asked
            return {
                **dict(self._of_tensors()),
                **dict(self._of_modules()),
                **dict(self._of_training()),
                **surroundings,
            }

    def _of_tensors(self) -> Iterator[tuple[str, Any]]:
        for name, tensor in _state(self.session.module):
            yield f"{'weight' if isinstance(tensor, nn.Parameter) else 'buffer'} {name}", frozen(tensor)
            yield f"storage {name}", tensor.data_ptr() == self._storages.get(name)
        pairs = zip(self.session.module.named_parameters(), self._grads, strict=True)
        for (name, p), grad in pairs:
            yield f"grad {name}", frozen(p.grad)
            yield f"grad-object {name}", _label(grad, p.grad)
            yield f"requires_grad {name}", (p.requires_grad, p.is_leaf)
            yield f"tensor-hooks {name}", (len(p._backward_hooks or {}), _accumulated_hooks(p))

    def _of_modules(self) -> Iterator[tuple[str, Any]]:
        for path, module in self.session.module.named_modules():
            yield f"mode {path}", module.training
            if torch.is_autocast_enabled("cpu") and isinstance(module, (nn.Linear, nn.Conv1d)):
                yield f"autocast-cache {path}", frozen(_product(module))
            yield f"attributes {path}", _labels(self._attributes[path], vars(module), but={"training"})
            for name, value in vars(module).items():
                if isinstance(value, dict):
                    yield f"{name} {path}", _labels(self._dicts.get(f"{path}.{name}", {}), value)

    def _of_training(self) -> Iterator[tuple[str, Any]]:
        sam, scale = self.session.sam, self.session.scale
        yield "batch values", frozen(self.session.given)
        pairs = zip(self._given, _leaves(self.session.given), strict=False)
        yield "batch tensors", [a is b for a, b in pairs]
        yield "optimizer", frozen(self.session.optimizer.state_dict())
        yield "sam-step", sam.steps_done
        yield "sam-state", frozen(sam.state_dict())
        now = {name: getattr(sam, name) for name in self._options}
        yield "sam-options", _labels(self._options, now, but={"steps_done"})
        yield "scaler", frozen(scale.state_dict()) if isinstance(scale, torch.amp.GradScaler) else scale


def frozen(element: Any) -> Any:
    """A nested state as bytes that can be compared, so that -0.0 and 0.0, and two NaNs, are told apart."""
    if isinstance(element, Tensor):
        flat = element.detach().to_dense() if element.is_sparse else element.detach()
        data = flat.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return str(element.dtype), tuple(element.shape), data
    if isinstance(element, np.ndarray):
        return element.tobytes()
    if isinstance(element, dict):
        return [(str(key), frozen(value)) for key, value in element.items()]
    if isinstance(element, (list, tuple)):
        return [frozen(value) for value in element]
    return element


def differing(found: World, wanted: World) -> list[str]:
    """Names of what is not as wanted."""
    return [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]


def _of_torch() -> World:
    devices = ("cpu", "cuda")
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return {
        "generator torch": frozen(torch.get_rng_state()),
        "generator numpy": frozen(np.random.get_state()),  # noqa: NPY002
        "generator python": random.getstate(),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices],
        "autocast-nesting": (depth, torch.is_autocast_cache_enabled()),
        "grad-mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autograd": (torch.is_anomaly_enabled(), torch._C._is_multithreading_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        "function-modes": (torch._C._len_torch_function_stack(), torch._C._is_torch_function_enabled()),
        "dispatch-modes": torch._C._len_torch_dispatch_stack(),
        "dispatch-keys": (
            torch._C._dispatch_tls_local_include_set().raw_repr(),
            torch._C._dispatch_tls_local_exclude_set().raw_repr(),
        ),
        "functorch": torch._C._functorch.maybe_current_level(),
        "saved-tensor-hooks": (
            torch._C._autograd._top_saved_tensors_default_hooks(True),
            torch._C._autograd._saved_tensors_hooks_is_enabled(),
        ),
        "global-hooks": {
            name: list(hooks.values())
            for name, hooks in vars(modules).items()
            if name.startswith("_global_") and isinstance(hooks, dict)
        },
        "parametrize": (dict(parametrize._cache), parametrize._cache_enabled),
        "patched": [_identities(owner) for owner in (torch.nn.functional, Tensor, nn.Module, torch.autograd)],
    }


def _of_python() -> World:
    return {
        "tracing": (sys.gettrace(), sys.getprofile()),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "threads": threading.active_count(),
        "context": list(contextvars.copy_context().items()),
        "interpreter": (sys.excepthook, sys.stdout, sys.stderr, sys.getrecursionlimit()),
    }


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _leaves(element: Any) -> Iterator[Any]:
    """Tensors and containers of a batch."""
    yield element
    values = element.values() if isinstance(element, dict) else element
    if isinstance(element, (dict, list, tuple)):
        for value in values:
            yield from _leaves(value)


def _label(before: Any, now: Any) -> str:
    if now is before:
        return "the same"
    return "gone" if now is None else "another"


def _labels(before: dict[Any, Any], now: dict[Any, Any], but: Collection[str] = ()) -> list[tuple[str, str]]:
    """For each name whether it stands for what it stood for; hooks have numbers, never used again."""
    missing = object()
    return [
        ("hook" if isinstance(name, int) else name, _label(before.get(name, missing), now.get(name, missing)))
        for name in {**before, **now}
        if name not in but
    ]


def _identities(owner: Any) -> list[tuple[str, int]]:
    return [(name, id(value)) for name, value in vars(owner).items()]


def _accumulated_hooks(p: Tensor) -> int:
    return len(p._post_accumulate_grad_hooks or {})


def _product(layer: nn.Conv1d | nn.Linear) -> Tensor:
    """With the weight as autocast casts it, or has kept it cast."""
    ones = torch.ones(1, layer.weight.shape[1])
    return layer(ones if isinstance(layer, nn.Linear) else ones[..., None])
