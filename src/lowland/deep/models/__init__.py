"""The networks of the paper, and a few smaller ones, by name."""

from lowland.deep.models.build import (
    DEFAULT_WIDTHS,
    MODEL_NAMES,
    NORMALIZED_BY_BATCH,
    build_model,
    is_convolutional,
)
from lowland.deep.models.dropout import Dropout, example_keys, masks_of

__all__ = [
    "DEFAULT_WIDTHS",
    "MODEL_NAMES",
    "NORMALIZED_BY_BATCH",
    "Dropout",
    "build_model",
    "example_keys",
    "is_convolutional",
    "masks_of",
]
