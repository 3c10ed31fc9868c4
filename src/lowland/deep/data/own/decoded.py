"""Decoded pictures, which are kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from lowland.deep.data.cache import cached_tensors
from lowland.deep.data.own.pictures import Picture, read_pictures
from lowland.deep.options import OwnDataOptions


class Decoding:
    """How the pictures of a part are decoded.

    Args:
        name: What the cache file's name begins with.
        sha256: Hash of the files that they are in.
        options: ``image_size`` and ``channels``, and the column of a table.
        cache_dir: The cache's folder.

    Attributes:
        notes: What was done to make them alike, once they are decoded.
    """

    def __init__(self, name: str, sha256: str, options: OwnDataOptions, cache_dir: str | Path | None) -> None:
        self._name, self._options, self._cache_dir = name, options, cache_dir
        chosen = (options.image_size, options.channels, options.input_column)
        self._sha256 = hashlib.sha256(f"{sha256} {chosen}".encode()).hexdigest()
        self.notes: tuple[str, ...] = ()

    def pixels(self, pictures: Callable[[], Sequence[Picture]], where: str) -> UInt8[Tensor, "n c h w"]:
        """The pixels of all pictures, from the cache if they are there.

        Args:
            pictures: Asked for them if they are not.
            where: Where they come from, for errors.

        Raises:
            InputError: If some cannot be read, they are not alike, or the cache is damaged.
        """
        size, channels = self._options.image_size, self._options.channels

        def decoded() -> tuple[dict[str, Tensor], str]:
            pixels, notes = read_pictures(pictures(), where=where, image_size=size, channels=channels)
            return {"images": pixels}, "\n".join(notes)

        tensors, about = cached_tensors(self._name, (), self._sha256, decoded, cache_dir=self._cache_dir)
        self.notes = tuple(about.splitlines())
        return tensors["images"]
