"""What the batched engine does not run."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowland.sam.passes import Passes


class Unbatchable(RuntimeError):
    """Something in the loss or in the options has no batched form.

    Attributes:
        what: The operation or option, in the user's words.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"engine='batched' must be able to run every part for all groups at once, got {what}."
        )
        self.what = what


def refuse_modules(passes: Passes) -> None:
    """Refuses modules that would run, or leave behind, what is only meant for the inside of a pass."""
    if hasattr(passes.loss, "_torchdynamo_orig_callable"):
        raise Unbatchable("a compiled loss")
    for module in passes.buffers.modules():
        _refuse(module)


def _refuse(module: nn.Module) -> None:
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        raise Unbatchable(f"a compiled module, {type(module).__name__}")
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm | WeightNorm):
            raise Unbatchable(
                f"torch.nn.utils' {type(hook).__name__}, which sets attributes (its parametrization does not)"
            )
