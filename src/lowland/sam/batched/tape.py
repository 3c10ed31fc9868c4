"""How operations that meet a parameter are found, and what becomes of them."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lowland.sam.asked import which_hold
from lowland.sam.batched.cause import CUSTOM, named
from lowland.sam.batched.checkpointing import follow
from lowland.sam.batched.level import CUSTOM_FUNCTION, Level, unwrapped
from lowland.sam.batched.outside import Outside, tensors_in
from lowland.sam.batched.weights import Use, View, Weight
from lowland.sam.modes import OwnMode
from lowland.sam.place import place_of
from lowland.sam.private import is_in_vmap, saving_hooks, unseen_by_modes
from lowland.sam.said import line_outside
from lowland.sam.touched import require_touched
from lowland.sam.unbatchable import Branches, Unbatchable

Rule = Callable[..., Any]

RULES: dict[Callable[..., Any], Rule] = {}
"""Operations with a rule. It is called with the tape and the operation's arguments."""


def rule(*functions: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule of torch ``functions``."""

    def register(function: Rule) -> Rule:
        for f in functions:
            RULES[f] = function
        return function

    return register


class Tape(OwnMode):
    """One pass of a loss over all groups, under ``torch.func.vmap``.

    Each operation of the loss comes here first. One that has a rule runs by its rule; of any other that
    meets a parameter, the parameter is replaced by one copy per group.

    Args:
        weights: The parameters.
        groups: Number of groups.
        outside: What the loss may meet beside them.
        results: Where to remember every result, to see whether one outlives the pass.

    Attributes:
        touches: What asks whether the loss touches its arguments, if that is asked.
        failed: The last error of an operation, and the operation.
        ended: Whether its pass is over: what an interrupt has left of it sees nothing.
        saved_again: Bytes of the most that a checkpoint saved when it ran a part of the loss again.
    """

    def __init__(
        self, weights: Sequence[Weight], groups: int, outside: Outside, results: list[weakref.ref[Tensor]]
    ) -> None:
        super().__init__()
        self.groups = groups
        self.outside = outside
        self.calls = 0
        self.depth = 0
        self.passed_by = False
        self.failed: tuple[Exception, Callable[..., Any]] | None = None
        self.results = results
        recorded = next((w.param for w in weights if w.gradient is not None), None)
        self.anchor = (
            None if recorded is None else torch.zeros((), device=recorded.device, requires_grad=True)
        )
        self.touches: require_touched | None = None
        self.ended = False
        self._weights = {id(w.param): w for w in weights}
        self._views: dict[int, View] = {}
        self._copies: dict[int, Tensor] = {}
        self._level: Level | None = None
        self._hooks = saving_hooks()
        self._repeats = False
        self.saved_again = 0
        self._required: Any = WeakIdKeyDictionary()

    def begin(self) -> None:
        """Tells the tape that ``vmap`` has begun."""
        self._level = Level(self.groups)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self.ended:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        if self.touches is not None:
            self.touches.note((args, kwargs))
        self.depth += 1
        try:
            result = self._run(func, args, kwargs or {})
        except (RuntimeError, NotImplementedError) as error:  # no other: frames hold what they have computed
            if self.failed is None or self.failed[0] is not error:
                self.failed = error, func
            raise
        finally:
            self.depth -= 1
        self.results.extend(weakref.ref(t) for t in tensors_in(result) if is_in_vmap(t))
        return result

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is CUSTOM_FUNCTION:
            raise Unbatchable(f"{CUSTOM}, {args[0].__name__}")
        if func in _REFUSED:
            raise Unbatchable(_REFUSED[func])
        hooks = saving_hooks()
        self.outside.runs_twice = hooks != self._hooks
        if self.outside.runs_twice:
            follow(hooks, self._again, self._note_again)
        found = RULES.get(func)
        if found is not None:
            result = found(self, *args, **kwargs)
            if result is not NotImplemented:
                return result
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__  # type: ignore[attr-defined]
            if name not in _VIEWING_PROPERTIES:
                return self._property(func, name, args[0])
        elif name in _ABOUT:
            return func(*args, **kwargs)
        elif name == "__bool__" and is_in_vmap(args[0]):
            return _agreed(args[0])
        elif name == "requires_grad_" and is_in_vmap(args[0]) and (*args, *kwargs.values())[1:] in _TRUE:
            self._required[args[0]] = True  # a leaf of the loss's own, whose gradient nobody can ask for
            return args[0]
        if any(self._known(t) for t in tensors_in((args, kwargs))):
            return self._with_parameter(func, name, args, kwargs)
        if func in _ENTERED:
            return self._enter(func, args, kwargs)
        writes = _writes(name, kwargs) or _in_place(func, args, kwargs)
        passed = self.outside.passed(named(func), writes=writes, args=args, kwargs=kwargs)
        return func(*passed, **kwargs)

    def _note_again(self, saved: int) -> None:
        self.saved_again = max(self.saved_again, saved)

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Where a part of the loss is run once more, in the backward pass."""
        assert self._level is not None
        self.ended, self._repeats = False, True
        try:
            with self._level.again(), self:
                yield
        finally:
            self.ended = True

    def _property(self, func: Callable[..., Any], name: str, tensor: Tensor) -> Any:
        """An attribute of a tensor; what autograd knows of it is hidden by ``vmap``."""
        if name in {"requires_grad", "grad_fn", "is_leaf"} and is_in_vmap(tensor):
            if name != "requires_grad":
                raise Unbatchable(f"Tensor.{name}")
            return tensor in self._required or bool(unwrapped(tensor).requires_grad)
        return func(tensor)

    # What rules use

    def use(self, tensor: Any) -> Use | None:
        """The parameter behind ``tensor`` as a matrix, if it is one that takes part."""
        weight = self._weights.get(id(tensor))
        if weight is not None:
            return Use(weight, 0, len(weight.param)) if weight.param.dim() > 1 else None
        view = self._views.get(id(tensor))
        return None if view is None else view.use

    def expect(self, use: Use, rows: int = 0) -> None:
        """Takes note of a use, of so many rows, whose backward pass will come once."""
        if not self._repeats:
            use.weight.uses += 1
            use.weight.rows += rows

    def at_groups(self, function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        """``function`` of all groups' ``tensors`` at once, their first axis; it returns such tensors."""
        assert self._level is not None
        whole = [self._taking_part(t) for t in tensors]
        lifted = [
            None if t is None else self._substitute(t)
            for t, w in zip(tensors, whole, strict=True)
            if w is None
        ]

        def with_copies(*rest: Tensor | None) -> Any:
            remaining = iter(rest)
            return function(*(next(remaining) if w is None else _copy(w) for w in whole))

        return self._level.at_groups(with_copies if len(lifted) < len(tensors) else function, lifted)

    def beside(self, function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """The same of one tensor, which is none of the loss's operations."""
        self.depth += 1
        try:
            with unseen_by_modes():
                found: Tensor = self.at_groups(function, tensor)
        finally:
            self.depth -= 1
        return found

    def _taking_part(self, tensor: Tensor | None) -> Weight | None:
        """The parameter that ``tensor`` is, if it is not just a constant."""
        weight = self._weights.get(id(tensor))
        return weight if weight is not None and weight.takes_part else None

    def substituted(self, element: Any) -> Any:
        """``element`` with one copy per group in place of each parameter."""
        if isinstance(element, Tensor):
            return self._substitute(element)
        if isinstance(element, dict):
            return {key: self.substituted(value) for key, value in element.items()}
        if isinstance(element, (list, tuple)):
            values = [self.substituted(value) for value in element]
            if hasattr(element, "_fields"):
                return type(element)(*values)
            return type(element)(values)
        return element

    # What is done

    def _known(self, tensor: Tensor) -> bool:
        return id(tensor) in self._weights or id(tensor) in self._views

    def _substitute(self, tensor: Tensor) -> Tensor:
        view = self._views.get(id(tensor))
        weight = view.weight if view is not None else self._weights.get(id(tensor))
        if weight is None or not weight.takes_part:
            return tensor
        if id(weight) not in self._copies:
            assert self._level is not None
            self._copies[id(weight)] = self._level.at_groups(partial(_copy, weight), [])
        copy = self._copies[id(weight)]
        return copy if view is None else view.replay(copy)

    def _with_parameter(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        writes = _writes(name, kwargs)
        if name == "__set__" or (writes and any(map(self._known, tensors_in((args[:1], kwargs))))):
            raise Unbatchable(f"{named(func)}, which changes a parameter")
        if writes:
            self.outside.passed(named(func), writes=True, args=args[:1], kwargs={})
        viewed = name in _VIEWS and self._known(args[0]) and torch.is_grad_enabled()
        if viewed and not any(True for _ in tensors_in((args[1:], kwargs))):
            found = self._view(func, name, args, kwargs)
            if found is not None:
                return found
        if isinstance(func, types.FunctionType):
            return self._enter(func, args, kwargs)
        return func(*self.substituted(args), **self.substituted(kwargs))

    def _view(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        base, rest = args[0], args[1:]
        known = self._views.get(id(base))
        weight = self._weights[id(base)] if known is None else known.weight
        replay = (lambda t: t) if known is None else known.replay
        if not weight.takes_part:
            return func(*args, **kwargs)
        with torch.no_grad():
            result = func(base.detach(), *rest, **kwargs)
        memory = place_of(weight.param)
        if any(place_of(t) != memory for t in tensors_in(result)):
            return None  # a selection, which is a copy
        several = not isinstance(result, Tensor)
        for k, tensor in enumerate(result if several else [result]):

            def again(t: Tensor, k: int = k) -> Tensor:
                found = func(replay(t), *rest, **kwargs)
                return found[k] if several else found  # type: ignore[no-any-return]

            self._views[id(tensor)] = View(
                tensor, weight, again, _as_matrix(self.use(base), tensor, base, name)
            )
        return result

    def _enter(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the body of a function of torch that is written in Python, operation by operation."""
        with self:
            return _body(func)(*args, **kwargs)


def _agreed(condition: Tensor) -> bool:
    """The truth of a condition, if it is the same for all groups: they all take that branch."""
    values = which_hold(unwrapped(condition).detach().reshape(-1).bool())
    if len(set(values)) > 1:
        raise Branches(line_outside(), values)
    return bool(values[0])


def _copy(weight: Weight) -> Tensor:
    with torch.enable_grad():  # another use may need the gradient that this one does not
        return weight.copy()


def _as_matrix(use: Use | None, view: Tensor, base: Tensor, name: str) -> Use | None:
    """A view of a matrix as a matrix: transposed, or some of its rows."""
    if use is None or base.dim() != 2 or view.dim() != 2:
        return None
    if name in {"t", "T", "mT", "H", "transpose", "swapaxes", "permute", "adjoint"}:
        flipped = view.shape == base.shape[::-1] and view.stride() == base.stride()[::-1]
        return Use(use.weight, use.start, use.stop, not use.transposed) if flipped else None
    if use.transposed or view.shape[1] != base.shape[1] or view.stride() != base.stride():
        return None
    start = use.start + (view.storage_offset() - base.storage_offset()) // max(base.stride(0), 1)
    return Use(use.weight, start, start + len(view))


_bodies: dict[Callable[..., Any], Callable[..., Any]] = {}


def _body(func: Any) -> Callable[..., Any]:
    """``func`` without the question whether somebody overrides it: somebody does, and calls it."""
    if func not in _bodies:
        names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
        own = {**func.__globals__, **dict.fromkeys(names, lambda *_: False)}
        body = types.FunctionType(func.__code__, own, func.__name__, func.__defaults__, func.__closure__)
        body.__kwdefaults__ = func.__kwdefaults__
        _bodies[func] = body
    return _bodies[func]


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    in_place = name.endswith("_") and not name.endswith("__") and name not in {"requires_grad_"}
    return in_place or name in _WRITING or kwargs.get("out") is not None


def _in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of torch is told to write to its input."""
    code = getattr(func, "__code__", None)
    if code is None or "inplace" not in code.co_varnames[: code.co_argcount]:
        return False
    place = code.co_varnames.index("inplace")
    return bool(args[place] if len(args) > place else kwargs.get("inplace", False))


_ENTERED = {F.batch_norm, F.instance_norm, F.multi_head_attention_forward}
"""Functions whose operations have rules whether or not they meet a parameter."""

_REFUSED: dict[Callable[..., Any], str] = {
    torch.autograd.grad: "torch.autograd.grad inside the loss",
    torch.autograd.backward: "torch.autograd.backward inside the loss",
    Tensor.backward: "Tensor.backward inside the loss",
    Tensor.register_hook: "Tensor.register_hook inside the loss",
    Tensor.as_strided: "as_strided",
    torch.as_strided: "as_strided",
}

_TRUE = ((), (True,))

_WRITING = {"__setitem__", "__set__", *(f"__i{o}__" for o in ("lshift", "rshift", "and", "or", "xor"))}

_VIEWING_PROPERTIES = {"T", "mT", "H", "mH", "data"}

_VIEWS = {
    *("t", "T", "mT", "H", "transpose", "swapaxes", "permute", "adjoint", "chunk", "split", "narrow"),
    *("tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "__getitem__"),
}

_ABOUT = {
    *("size", "dim", "numel", "nelement", "ndimension", "stride", "storage_offset", "is_contiguous"),
    *("is_floating_point", "is_complex", "element_size", "get_device", "is_same_size", "is_tensor"),
    *("__len__", "__hash__", "is_pinned"),
}
