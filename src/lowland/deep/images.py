"""A picture of what a network sees."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lowland.deep.config import TrainConfig
from lowland.deep.data import TrainingData, to_float
from lowland.deep.seeding import derive_seed
from lowland.runs.atomic import replace_atomically

_COLUMNS = 8


def write_image_grid(path: Path, config: TrainConfig, data: TrainingData) -> None:
    """Writes the first 64 training images, augmented as in training, as one PNG."""
    images = data.train.head(_COLUMNS**2).inputs
    if config.augmentation is not None:
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "exported images"))
        images = config.augmentation(images, generator)
    pixels = (to_float(images).clamp(0, 1) * 255).round().byte().cpu()
    picture = Image.fromarray(_grid(pixels).numpy())
    replace_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def _grid(images: Tensor) -> Tensor:
    """Images (n, c, h, w) side by side, as (rows, columns, 3)."""
    n, channels, height, width = images.shape
    rows = -(-n // _COLUMNS)
    grid = torch.zeros(rows * _COLUMNS, channels, height + 1, width + 1, dtype=torch.uint8)
    grid[:n, :, :height, :width] = images
    grid = grid.view(rows, _COLUMNS, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * (height + 1), _COLUMNS * (width + 1), channels)
    return grid.expand(-1, -1, 3).contiguous() if channels == 1 else grid.contiguous()
