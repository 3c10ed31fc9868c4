"""Where a set of images comes from: the facts about its Parquet files, or the function that draws it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxtyping import Float32, Int64, Shaped, UInt8
from torch import Tensor

Part = Literal["train", "test"]

Images = UInt8[Tensor, "n c h w"] | Float32[Tensor, "n c h w"]
Labels = Int64[Tensor, "n"]
Inputs = Shaped[Tensor, "n ..."]
Targets = Int64[Tensor, "n"] | Float32[Tensor, "n"] | Float32[Tensor, "n values"]


@dataclass(frozen=True)
class HubRepository:
    """A data set's repository on the Hugging Face Hub, pinned.

    Attributes:
        name: ``owner/name``.
        revision: The commit that is downloaded.
        config: The folder with the Parquet files there.
        sha256: The files' hashes, by part, where known; such a part is a single file.
    """

    name: str
    revision: str
    config: str
    sha256: Mapping[Part, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ParquetSource:
    """Labelled images in Parquet files of the Hub's layout.

    Attributes:
        name: The set's folder below ``data_dir``, and the beginning of its cache files' names.
        num_classes: Labels lie in ``0 .. num_classes - 1``.
        image_column: Column of ``{bytes, path}``.
        label_column: Column of integers.
        mode: Pillow's mode of the decoded images: ``L`` (one channel) or ``RGB``.
        hub: Where it can be downloaded; ``None`` if it is not there.
        embedded: The folder inside the package that holds it; ``None`` if it is not embedded.
    """

    name: str
    num_classes: int
    image_column: str
    label_column: str
    mode: Literal["L", "RGB"]
    hub: HubRepository | None = None
    embedded: Path | None = None


@dataclass(frozen=True)
class SyntheticSource:
    """Images drawn from a distribution with a fixed seed of their own.

    Attributes:
        num_classes: Labels lie in ``0 .. num_classes - 1``.
        draw: The images and labels of a part.
    """

    num_classes: int
    draw: Callable[[Part], tuple[Images, Labels]]
