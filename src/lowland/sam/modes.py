"""Modes that see every function of torch."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode

from lowland.sam.private import is_innermost


class OwnMode(TorchFunctionMode):
    """A mode whose end takes away itself and nothing else, also where an interrupt came between."""

    def __exit__(self, *exception: Any) -> None:
        if is_innermost(self):
            super().__exit__(*exception)  # type: ignore[no-untyped-call]
