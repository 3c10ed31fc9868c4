"""Batch norm in groups of one example."""

from __future__ import annotations

from torch import Tensor, nn

from lowland.sam.grouped import Grouped
from lowland.sam.said import warn_once

_OF_ONE_PROCESS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Those whose statistics are not taken over all processes, as those of ``SyncBatchNorm`` are."""


def warn_of_single_examples(module: nn.Module | None, groups: Grouped, about: Tensor) -> None:
    """Says once that a batch norm sees one example at a time: that is m-SAM, but hardly trains a network."""
    if module is None or len(groups) < 2 or groups.size(0) != 1:
        return
    for name, layer in module.named_modules():
        if isinstance(layer, _OF_ONE_PROCESS) and layer.training:
            place = f"{name} ({type(layer).__name__})" if name else type(layer).__name__
            text = (
                f"m = 1 normalizes each example by itself in the batch norm {place}, with which a network "
                "may learn nothing: group norm, or a larger m, has no such trouble."
            )
            warn_once(about, ("single examples", name), text)
            return
