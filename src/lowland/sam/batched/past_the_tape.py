"""What reaches a parameter without a function that the tape sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowland.sam.batched.outside import tensors_in
from lowland.sam.batched.tape import Tape
from lowland.sam.private import unseen_by_modes


class PastTheTape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what reaches a parameter without a torch function that the tape sees, as scripted code does.

    Args:
        params: The parameters.
        tape: The tape, which is active too.
    """

    def __init__(self, params: Sequence[Tensor], tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._params = {id(p) for p in params}
        self._tape = tape

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._tape.depth == 0 and any(id(t) in self._params for t in tensors_in((args, kwargs))):
            self._tape.passed_by = True  # an exception would not get through the interpreter of scripts
        with unseen_by_modes():  # this call is not the loss's
            return func(*args, **(kwargs or {}))
