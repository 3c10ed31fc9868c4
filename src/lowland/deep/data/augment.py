"""Random crops and flips of a whole batch, as tensor operations on the batch's device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor

from lowland.errors import InputError

_PADDING = 4


def crop_and_flip(
    images: Shaped[Tensor, "n c h w"],
    tops: Int64[Tensor, "n"],
    lefts: Int64[Tensor, "n"],
    flips: Bool[Tensor, "n"] | None = None,
    *,
    padding: int,
) -> Shaped[Tensor, "n c h w"]:
    """Mirrors the chosen images, pads all with zeros, and cuts from each the window at its offset.

    Args:
        images: Images of any type, shape ``(n, c, h, w)``; unchanged.
        tops: First row of each window in the padded image, 0 to ``2 * padding``.
        lefts: First column of each window, likewise.
        flips: Which images are mirrored left to right, before the crop; ``None`` for none.
        padding: Zero pixels added on each of the four sides.
    """
    n, c, h, w = images.shape
    versions = 1 if flips is None else 2
    padded = images.new_zeros(versions, n, c, h + 2 * padding, w + 2 * padding)
    inner = padded[..., padding : padding + h, padding : padding + w]
    inner[0] = images
    if flips is not None:
        inner[1] = images.flip(3)
    # A row of a window is w neighbours in memory, so one index_select copies whole rows; indexing
    # pixels takes 2 to 6 times as long on a CPU.
    runs = padded.as_strided((padded.numel() - w + 1, w), (1, 1))
    steps = padded.stride()
    first = torch.arange(n, device=images.device) * steps[1] + tops * steps[3] + lefts
    if flips is not None:
        first = first + flips * steps[0]
    channels = torch.arange(c, device=images.device)[:, None] * steps[2]
    rows = torch.arange(h, device=images.device) * steps[3]
    starts = first[:, None, None] + (channels + rows)
    return runs.index_select(0, starts.reshape(-1)).view(n, c, h, w)


def augment(
    images: Shaped[Tensor, "n c h w"],
    generator: torch.Generator,
    *,
    padding: int = _PADDING,
    flip: bool = True,
) -> Shaped[Tensor, "n c h w"]:
    """A random crop of each image padded with zeros, mirrored with probability one half.

    Every image has its own offset, uniform on the ``(2 * padding + 1) ** 2`` possible ones, and its own flip.

    Args:
        images: A batch of any type, shape ``(n, c, h, w)``; the result has its type, shape and device.
        generator: Where the offsets and flips are drawn; on the CPU, or on the device of ``images``.
        padding: Zero pixels added on each side; 0 leaves the crop out.
        flip: Whether images are mirrored at all.

    Raises:
        InputError: If ``padding`` is negative.

    Example:
        >>> import torch
        >>> from lowland.deep.data import augment
        >>> batch = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8)
        >>> augment(batch, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])
    """
    if padding < 0:
        raise InputError(f"padding must be non-negative, got {padding}.")
    return drawn(len(images), generator, padding=padding, flip=flip).to(images.device)(images)


@dataclass(frozen=True)
class Variation:
    """Where each image of a batch is cut out, and whether it is mirrored.

    Attributes:
        tops: First rows of the windows in the padded images.
        lefts: Their first columns.
        flips: Which images are mirrored; ``None`` for none.
        padding: Zero pixels added on each side.
    """

    tops: Int64[Tensor, "n"]
    lefts: Int64[Tensor, "n"]
    flips: Bool[Tensor, "n"] | None
    padding: int

    def __call__(self, images: Shaped[Tensor, "n c h w"]) -> Shaped[Tensor, "n c h w"]:
        """The images, varied."""
        return crop_and_flip(images, self.tops, self.lefts, self.flips, padding=self.padding)

    def __getitem__(self, rows: slice) -> Variation:
        """That of some of the images."""
        return self._mapped(lambda draws: draws[rows])

    def to(self, device: torch.device) -> Variation:
        """The same on a device."""
        return self._mapped(lambda draws: draws.to(device))

    def _mapped(self, of: Callable[[Tensor], Tensor]) -> Variation:
        flips = None if self.flips is None else of(self.flips)
        return Variation(of(self.tops), of(self.lefts), flips, self.padding)


def drawn(n: int, generator: torch.Generator, *, padding: int, flip: bool) -> Variation:
    """How ``n`` images are varied, on the generator's device."""
    device = generator.device
    tops, lefts = torch.randint(2 * padding + 1, (2, n), generator=generator, device=device)
    flips = torch.randint(2, (n,), generator=generator, device=device).bool() if flip else None
    return Variation(tops, lefts, flips, padding)


def to_float(inputs: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Pixels in [0, 1] from bytes.

    ``uint8`` becomes ``float32 / 255``; other numbers, and tokens, stay as they are.

    Args:
        inputs: Inputs of any type and shape.

    Returns:
        Inputs of the same shape.

    Example:
        >>> import torch
        >>> from lowland.deep.data import to_float
        >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if inputs.dtype != torch.uint8:
        return inputs
    pixels: Float32[Tensor, "*shape"] = inputs.float()
    return pixels.div_(255)


@dataclass(frozen=True)
class Augmentation:
    """How the training images of a set are varied by default.

    Attributes:
        crop: Whether images are cropped at random after padding by 4.
        flip: Whether images are mirrored at random.

    Example:
        >>> import torch
        >>> from lowland.deep.data import Augmentation
        >>> images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
        >>> mirrored = Augmentation(crop=False, flip=True)(images, torch.Generator().manual_seed(0))
        >>> torch.equal(mirrored, images) or torch.equal(mirrored, images.flip(3))
        True
    """

    crop: bool
    flip: bool

    def __call__(
        self, images: Shaped[Tensor, "n c h w"], generator: torch.Generator
    ) -> Shaped[Tensor, "n c h w"]:
        """The batch, augmented as this set's images are; the batch itself if they are not.

        Args:
            images: A batch, shape ``(n, c, h, w)``.
            generator: Where offsets and flips are drawn.
        """
        if not (self.crop or self.flip):
            return images
        return augment(images, generator, padding=_PADDING if self.crop else 0, flip=self.flip)

    def part(
        self,
        images: Shaped[Tensor, "n c h w"],
        generator: torch.Generator,
        *,
        rows: slice,
        of: int,
    ) -> Shaped[Tensor, "n c h w"]:
        """The ``images``, augmented as they are in the whole batch of which they are a part.

        Args:
            images: The images, shape ``(n, c, h, w)``.
            generator: Where offsets and flips of the whole batch are drawn.
            rows: Which of the batch they are.
            of: Number of images of the batch.
        """
        if not (self.crop or self.flip):
            return images
        variation = drawn(of, generator, padding=_PADDING if self.crop else 0, flip=self.flip)
        return variation[rows].to(images.device)(images)
