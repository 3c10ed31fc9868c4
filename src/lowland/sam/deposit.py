"""How gradients reach ``.grad``, and what must not see them on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowland.sam.containers import version_of
from lowland.sam.place import place_of
from lowland.sam.reductions import Reductions


class Deposit:
    """Adds a result's gradients to ``.grad``, all of them or none.

    Args:
        params: The parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        hooked = any(_has_hooks(p) for p in params)
        self._grads = [(p, p.grad, version_of(p.grad), _copy(p.grad) if hooked else None) for p in params]
        self._hooked = hooked

    def add(self, gradients: list[Tensor | None], reductions: Reductions | None = None) -> None:
        """Adds ``gradients`` in one backward call, so that every hook fires, once, and ``reductions`` happen.

        The list is emptied: where ``.grad`` is ``None``, the gradient itself becomes it, without a copy.
        If a hook raises, every ``.grad`` is what it was.
        """
        params = [p for p, *_ in self._grads]
        try:
            with torch.enable_grad():
                value = as_loss(torch.zeros((), device=params[0].device), params, gradients, reductions)
                if value.requires_grad:
                    torch.autograd.backward(value)
        except BaseException:
            if self._hooked:
                self._put_back()
            raise

    def done(self) -> bool:
        """Whether the gradients were added: no code of Python runs between the first and the last of them."""
        return any(p.grad is not g or version_of(g) != version for p, g, version, _ in self._grads)

    def _put_back(self) -> None:
        for i, (p, g, _, copy) in enumerate(self._grads):
            if g is not None and copy is not None:
                with torch.no_grad():
                    g.copy_(copy)
            p.grad = g
            self._grads[i] = p, g, version_of(g), copy


def deposit(params: Sequence[Tensor], gradients: list[Tensor | None]) -> None:
    """Adds ``gradients`` to ``.grad``; see :class:`Deposit`."""
    Deposit(params).add(gradients)


def _has_hooks(p: Tensor) -> bool:
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))


def _copy(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.detach().clone()


def as_loss(
    value: Tensor,
    params: Sequence[Tensor],
    gradients: list[Tensor | None],
    reductions: Reductions | None = None,
) -> Tensor:
    """A scalar equal to ``value`` whose gradient with respect to ``params`` is ``gradients``.

    ``gradients`` may have more digits than the params, and are rounded last. The list is emptied. Its
    backward pass is that of ``reductions``.
    """
    box = _Box(list(gradients))
    gradients.clear()
    _unshare(box.gradients)
    used = [p for p, g in zip(params, box.gradients, strict=True) if g is not None]
    box.dtypes = [p.dtype for p in used]
    if not used:
        return value.detach().clone()
    box.gradients = [g for g in box.gradients if g is not None]
    ends = [] if reductions is None else reductions.ends()
    found: Tensor = _WithGradient.apply(value.detach(), box, *used, *ends)  # type: ignore[no-untyped-call]
    if reductions is not None:
        reductions.prepare(found)
    return found


def _unshare(gradients: list[Tensor | None]) -> None:
    """Copies what has its memory in common with an earlier gradient: each is to become a ``.grad``."""
    seen = set()
    for i, g in enumerate(gradients):
        if g is None or g.is_sparse:
            continue
        memory = place_of(g)
        if memory in seen:
            gradients[i] = g.clone()
        seen.add(memory)


@dataclass
class _Box:
    """Gradients that are handed over once."""

    gradients: list[Tensor | None]
    dtypes: list[torch.dtype] = field(default_factory=list)


class _WithGradient(torch.autograd.Function):
    """The identity of its first argument, with gradients of the rest that are already known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, box: _Box, *inputs: Tensor) -> Tensor:
        ctx.box, ctx.num_ends = box, len(inputs) - len(box.dtypes)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.box.gradients:
            raise RuntimeError("the gradients must be used once, got a second backward.")
        gradients, ctx.box.gradients = ctx.box.gradients, []
        if outer != 1.0:
            gradients = [g * outer.to(g) for g in gradients]
        found = (g.to(dtype) for g, dtype in zip(gradients, ctx.box.dtypes, strict=True))
        return None, None, *found, *(outer.new_zeros(()) for _ in range(ctx.num_ends))


def tensor_hooks_held(params: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Inside the block no hook of ``Tensor.register_hook`` on a parameter fires.

    ``torch.autograd.grad`` runs them too, so that they would act on the passes' gradients and then once
    more on what is deposited.
    """
    return _held([p._backward_hooks for p in params])


def accumulated_hooks_held(params: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Inside the block no hook fires that waits for a gradient in ``.grad``: it is not there to stay."""
    return _held([getattr(p, "_post_accumulate_grad_hooks", None) for p in params])


@contextmanager
def _held(each: Sequence[dict[int, Any] | None]) -> Iterator[None]:
    """Inside the block there are no hooks."""
    held = [(hooks, dict(hooks)) for hooks in each if hooks]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, saved in held:
            hooks.update(saved)
