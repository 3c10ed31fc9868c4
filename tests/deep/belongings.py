"""Files as users have them: folders of images, tables, arrays."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = {"birds": (200, 30, 30), "cats": (30, 200, 30), "dogs": (30, 30, 200)}


def picture(rng: np.random.Generator, height: int, width: int, colour: tuple[int, ...] | int) -> Image.Image:
    """Noise around a colour; a gray level if it is one number."""
    channels = () if isinstance(colour, int) else (len(colour),)
    pixels = rng.integers(-20, 20, (height, width, *channels)) + np.array(colour)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_images(
    folder: Path, count: int = 10, *, size: tuple[int, int] | None = (6, 5), seed: int = 0
) -> Path:
    """A directory for each class, of images of one size, or of many for ``None``."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            height, width = size or rng.integers(5, 12, 2)
            picture(rng, height, width, colour).save(folder / name / f"{i:02}.png")
    return folder


def encoded(image: Image.Image) -> dict[str, Any]:
    """An image as the Hub's Parquet has it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_table(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    """A Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def image_column(count: int, *, seed: int = 0, size: tuple[int, int] = (6, 5)) -> pa.Array:
    """Images of three colours in turn."""
    rng = np.random.default_rng(seed)
    colours = [*COLOURS.values()]
    images = [encoded(picture(rng, *size, colours[i % 3])) for i in range(count)]
    return pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write_features(path: Path, count: int = 60, *, seed: int = 0) -> Path:
    """Three numbers, and a number that depends on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0] - np.sin(x[:, 1])).astype(np.float32))
    return path
