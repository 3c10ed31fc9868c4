"""Modes that see every function of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OwnMode(TorchFunctionMode):
    """A mode whose end takes away itself and nothing else, also where an interrupt came between."""

    def __exit__(self, *exception: Any) -> None:
        depth = torch._C._len_torch_function_stack()
        if depth > 0 and torch._C._get_function_stack_at(depth - 1) is self:
            super().__exit__(*exception)  # type: ignore[no-untyped-call]
