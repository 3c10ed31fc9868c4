"""The networks of the paper, and a few smaller ones, by name."""

from lowland.deep.models.build import (
    DEFAULT_WIDTHS,
    MODEL_NAMES,
    NORMALIZED_BY_BATCH,
    build_model,
    is_convolutional,
)

__all__ = ["DEFAULT_WIDTHS", "MODEL_NAMES", "NORMALIZED_BY_BATCH", "build_model", "is_convolutional"]
