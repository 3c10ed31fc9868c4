"""Whether a loss touches its arguments: one that does not cannot be cut into groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowland.sam.buffers import is_compiled
from lowland.sam.containers import copied, is_container, items
from lowland.sam.modes import OwnMode
from lowland.sam.named import modules_named_by, named_by
from lowland.sam.place import place_of
from lowland.sam.private import is_in_vmap


class require_touched(OwnMode):  # noqa: N801 - it is called like a function
    """Refuses a loss that, inside the block, touches no tensor of ``batch`` in any way.

    It is the loss of other examples, those that it closes over: whatever m was asked for, all of them would
    share one perturbation. Functions of torch tell, and what is asked of a tensor: its shape, its numbers. A
    loss that touches nothing so is asked once more for its operations, which scripted code shows alone.
    Compiled code shows neither, and is not asked.

    Args:
        batch: Nested containers of the tensors.
        loss: The loss, if it is known.
        ask: What runs it once more and leaves nothing behind; by default the loss itself.

    Raises:
        ValueError: At the end of the block, if ``batch`` has tensors and nothing touched one.
    """

    def __init__(
        self, batch: Any, loss: Callable[..., Any] | None = None, ask: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        self._tensors = {id(t) for t in _tensors(batch)}
        self._ask = ask or loss
        self._part = batch
        self._any = not self._tensors or _runs_compiled_code(loss)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not self._any:
            self.note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Any:
        return self if self._any else super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None:
            self.require_any(self._part)

    def note(self, arguments: Any) -> None:
        """Takes note of a function's arguments."""
        self._any = self._any or any(id(t) in self._tensors for t in _tensors(arguments))

    def require_any(self, part: Any) -> None:
        """Refuses a loss that touched none.

        Args:
            part: The arguments of the loss, to ask it once more.

        Raises:
            ValueError: If nothing was touched.
        """
        at_groups = any(map(is_in_vmap, _tensors(part)))
        ask = None if at_groups else self._ask
        if not self._any and (ask is None or not _Operations(part).any_of(ask)):
            raise ValueError(
                "loss must use its arguments where m cuts the batch, got one that touched none of them "
                "(it may close over the whole batch)."
            )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whether an operation of a loss reads the memory of its arguments."""

    def __init__(self, part: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._part = copied(part)
        self._memory = {place_of(t) for t in _tensors(self._part)}
        self._any = False

    def any_of(self, loss: Callable[..., Any]) -> bool:
        with torch.no_grad(), self:
            loss(*self._part)
        return self._any

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._any = self._any or any(place_of(t) in self._memory for t in _tensors((args, kwargs)))
        return func(*args, **(kwargs or {}))


def _runs_compiled_code(loss: Any) -> bool:
    compiled = any(is_compiled(m) for module in modules_named_by(loss) for m in module.modules())
    return compiled or any(hasattr(thing, "_torchdynamo_orig_callable") for thing in named_by(loss))


def _tensors(element: Any) -> Iterator[Tensor]:
    if isinstance(element, Tensor):
        yield element
    elif is_container(element):
        for _, value in items(element):
            yield from _tensors(value)
