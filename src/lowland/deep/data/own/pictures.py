"""Pictures, from files or bytes, of one size and one number of channels."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from lowland.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_NATIVE = {
    "1": "L",
    "L": "L",
    "LA": "RGBA",
    "P": "RGB",
    "PA": "RGBA",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "CMYK": "RGB",
}
_TURNED = {5, 6, 7, 8}
"""Values of a photo's orientation for which height is width."""
_SHOWN = 3

Picture = tuple[str, Path | bytes]
Read = TypeVar("Read")


@dataclass(frozen=True)
class _Header:
    """What a picture's first bytes say: the mode that suits it, and its height and width upright."""

    mode: str
    size: tuple[int, int]


def read_pictures(
    pictures: Sequence[Picture], *, where: str, image_size: int | None, channels: int | None
) -> tuple[UInt8[Tensor, "n c h w"], tuple[str, ...]]:
    """The pixels of all pictures, upright, and what was done to make them alike.

    Args:
        pictures: Each with its name, as a file or its bytes.
        where: Where they come from, for errors.
        image_size: Scale the shorter side to this and cut out the middle.
        channels: Convert to 1, 3 or 4 channels.

    Raises:
        InputError: If some cannot be read, which are named, or they are of several sizes or modes.
    """
    headers = _readable(pictures, _header, where)
    mode = _mode(pictures, headers, channels, where)
    sizes = sorted({header.size for header in headers})
    if image_size is None and len(sizes) > 1:
        of_each = [header.size for header in headers]
        ends = (f"{_by(size)} ({_first(pictures, of_each, size)})" for size in (sizes[0], sizes[-1]))
        raise InputError(
            f"images of {where} must be of one size, got {len(sizes)} sizes from {' to '.join(ends)}; "
            "--image_size 32, say, makes them so."
        )
    pixels = _readable(pictures, lambda p: _pixels(p, mode, image_size), where)
    notes = []
    if image_size is not None and sizes != [(image_size, image_size)]:
        span = _by(sizes[0]) if len(sizes) == 1 else f"{_by(sizes[0])} ... {_by(sizes[-1])}"
        notes.append(f"resized from {span}, the middle cut out")
    modes = sorted({header.mode for header in headers} - {mode})
    if modes:
        notes.append(f"converted from {', '.join(modes)} to {mode}")
    return torch.from_numpy(np.stack(pixels)), tuple(notes)


def _readable(pictures: Sequence[Picture], read: Callable[[Path | bytes], Read], where: str) -> list[Read]:
    """What is read of each; those that cannot be read are named together."""
    found, failed = [], []
    for name, content in pictures:
        try:
            found.append(read(content))
        except _UNREADABLE as error:
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
            failed.append((name, "no image" if "cannot identify" in reason else reason))
    if failed:
        named = "; ".join(f"{name} ({reason})" for name, reason in failed[:_SHOWN])
        more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        raise InputError(
            f"every image of {where} must be one that can be decoded, "
            f"{len(failed)} of {len(pictures)} cannot: {named}{more}."
        )
    return found


def _opened(content: Path | bytes) -> Image.Image:
    return Image.open(content if isinstance(content, Path) else io.BytesIO(content), formats=_FORMATS)


def _header(content: Path | bytes) -> _Header:
    with _opened(content) as image:
        if image.mode not in _NATIVE:
            raise ValueError(f"mode {image.mode}, which has not 8 bits a channel")
        width, height = image.size
        turned = image.getexif().get(0x0112) in _TURNED
        mode = "RGBA" if "transparency" in image.info else _NATIVE[image.mode]
        return _Header(mode, (width, height) if turned else (height, width))


def _mode(pictures: Sequence[Picture], headers: Sequence[_Header], channels: int | None, where: str) -> str:
    if channels is not None:
        return _MODES[channels]
    modes = sorted({header.mode for header in headers})
    if len(modes) == 1:
        return modes[0]
    named = ", ".join(f"{mode} ({_first(pictures, [h.mode for h in headers], mode)})" for mode in modes)
    raise InputError(
        f"images of {where} must have as many channels, got {named}; --channels 3 makes them so."
    )


def _pixels(content: Path | bytes, mode: str, image_size: int | None) -> UInt8[np.ndarray, "c h w"]:
    with _opened(content) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode in ("RGBA", "LA", "PA") and mode in ("RGB", "L"):
            image = _on_white(image)
        image = image if image.mode == mode else image.convert(mode)
        if image_size is not None and image.size != (image_size, image_size):
            image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def _on_white(image: Image.Image) -> Image.Image:
    """What is transparent, on white as on paper; what lies below it is anything."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _first(pictures: Sequence[Picture], values: Sequence[object], value: object) -> str:
    """The name of the first picture of such a value."""
    return pictures[values.index(value)][0]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
