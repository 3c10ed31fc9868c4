"""Everything a run trains on and is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from lowland.deep.data.cache import cached, sha256_of
from lowland.deep.data.locate import locate
from lowland.deep.data.noise import asymmetric_noise, symmetric_noise
from lowland.deep.data.own import OwnData
from lowland.deep.data.pad import zero_pad
from lowland.deep.data.parquet import read_images
from lowland.deep.data.scaling import Scaling
from lowland.deep.data.sets import DATASETS, DataSet, dataset_named
from lowland.deep.data.source import Images, Labels, ParquetSource, Part, SyntheticSource
from lowland.deep.data.split import Split, divide
from lowland.deep.seeding import derive_seed
from lowland.errors import InputError

Kind = Literal["images", "features", "tokens"]


@dataclass(frozen=True)
class TrainingData:
    """Everything a run trains on and is measured against.

    Attributes:
        train: What is trained on.
        validation: What models are selected on, never trained on.
        test: What nothing is selected on, with the true labels.
        num_classes: Labels lie in ``0 .. num_classes - 1``; of targets that are numbers, how many there are.
        input_shape: Of one input: ``(c, h, w)`` of an image, ``(length,)`` of tokens.
        kind: What the inputs are.
        classes: Names of the classes, where they have any.
        vocab_size: Tokens lie in ``0 .. vocab_size - 1``; 0 for other inputs.
        scaling: What inputs were standardized by.
        own: Where the user's own data came from; ``None`` for a set of ours.
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    kind: Kind = "images"
    classes: tuple[str, ...] = ()
    vocab_size: int = 0
    scaling: Scaling | None = None
    own: OwnData | None = None

    @property
    def has_classes(self) -> bool:
        """Whether targets are classes, and not numbers."""
        return not self.train.targets.is_floating_point()

    @property
    def parts(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def renumbered(self, classes: tuple[str, ...]) -> TrainingData:
        """The same data, with the numbers that ``classes`` give to their names.

        Args:
            classes: Names, in which all of its own are.
        """
        number = torch.tensor([classes.index(name) for name in self.classes])
        train, validation, test = (
            replace(s, targets=number[s.targets], clean_targets=number[s.clean_targets])
            for s in self.parts.values()
        )
        parts = replace(self, train=train, validation=validation, test=test)
        return replace(parts, classes=classes, num_classes=len(classes))

    def standardized(self, scaling: Scaling | None = None) -> TrainingData:
        """The same data, with inputs of mean 0 and variance 1, or scaled as others were.

        Args:
            scaling: What others were scaled by; ``None`` for mean and variance over the training examples.

        Raises:
            InputError: If the inputs are tokens, or of another shape than those others.
        """
        if self.kind == "tokens":
            raise InputError("normalize must be left out for tokens, which are no quantities.")
        scaling = scaling or Scaling.of(self.train.inputs)
        train, validation, test = (replace(s, inputs=scaling(s.inputs)) for s in self.parts.values())
        return replace(self, train=train, validation=validation, test=test, scaling=scaling)


def load_training_data(
    dataset: str,
    *,
    seed: int = 0,
    frac_train: float = 1.0,
    p_label_noise: float = 0.0,
    noise_type: str = "sym",
    pad_to: int | None = None,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> TrainingData:
    """Loads a data set, holds out a tenth of its training images, and flips labels.

    Images are read from the Hub's Parquet files once, then from a cache of decoded images. The split
    depends on ``seed`` alone, not on the noise, and the noise on ``seed`` by a stream of its own.

    Args:
        dataset: One of ``DATASETS``.
        seed: Decides the split and the label noise.
        frac_train: Share of the training images that is used, after the validation images are taken.
        p_label_noise: Share of the training labels, and of the validation labels, that is flipped once.
        noise_type: ``sym``: to a uniformly random other class; ``asym``: to the class that it is easily
            confused with (CIFAR-10: truck→automobile, bird→airplane, cat↔dog, deer→horse, others
            unchanged), or to the next one (CIFAR-100 and SVHN).
        pad_to: Pad smaller images with zeros, on all sides, to this height and width.
        data_dir: Folder with local sets, ``<data_dir>/<set>/**/<part>-*.parquet``; by default
            ``LOWLAND_DATA`` in the environment. A set that is not there is downloaded from the Hub.
        cache_dir: Folder of decoded images; by default ``LOWLAND_CACHE`` in the environment, else
            ``lowland`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    Returns:
        The three parts of the set.

    Raises:
        InputError: If an option is wrong, the set is nowhere, or a file is damaged.

    Example:
        >>> from lowland.deep.data import load_training_data
        >>> data = load_training_data("gaussians_binary", p_label_noise=0.2)
        >>> len(data.train), len(data.validation), len(data.test), data.input_shape
        (900, 100, 1000, (1, 1, 100))
        >>> int((data.train.targets != data.train.clean_targets).sum())
        180
    """
    entry = dataset_named(dataset)
    _require_noise(entry, p_label_noise, noise_type)
    whole, test = (
        _load(entry, part, pad_to=pad_to, data_dir=data_dir, cache_dir=cache_dir)
        for part in ("train", "test")
    )
    if whole.inputs.shape[1:] != test.inputs.shape[1:]:
        raise InputError(
            f"Training and test images of {dataset} must have one shape, "
            f"got {tuple(whole.inputs.shape[1:])} and {tuple(test.inputs.shape[1:])}."
        )
    training, held_out = divide(len(whole), seed=seed, frac_train=frac_train)
    parts = {"train": whole.select(training), "validation": whole.select(held_out)}
    train, validation = (
        _with_noise(part, entry, p_label_noise, noise_type, derive_seed(seed, "label noise", name))
        for name, part in parts.items()
    )
    return TrainingData(train, validation, test, entry.num_classes, tuple(test.inputs.shape[1:]))


def _load(
    entry: DataSet,
    part: Part,
    *,
    pad_to: int | None,
    data_dir: str | Path | None,
    cache_dir: str | Path | None,
) -> Split:
    source = entry.train if part == "train" else entry.test
    if isinstance(source, SyntheticSource):
        images, labels = source.draw(part)
    else:
        images, labels = _decoded(source, part, data_dir=data_dir, cache_dir=cache_dir)
    split = Split(images, labels, labels, torch.arange(len(labels)))
    if entry.keep:
        split = _subset(split, entry.keep)
    return split if pad_to is None else replace(split, inputs=zero_pad(split.inputs, pad_to))


def _decoded(
    source: ParquetSource, part: Part, *, data_dir: str | Path | None, cache_dir: str | Path | None
) -> tuple[Images, Labels]:
    files = locate(source, part, data_dir=data_dir)
    sha256 = sha256_of(files.paths)
    if files.sha256 not in (None, sha256):
        raise InputError(
            f"The download {files.paths[0]} must have the SHA-256 {files.sha256}, got {sha256}; "
            "delete it and it is fetched again."
        )
    return cached(
        f"{source.name}-{part}",
        files.paths,
        sha256,
        lambda: read_images(files.paths, source),
        cache_dir=cache_dir,
    )


def _subset(split: Split, keep: Mapping[int, int]) -> Split:
    chosen = split.select(torch.isin(split.targets, torch.tensor(list(keep))).nonzero().squeeze(1))
    labels = torch.tensor([keep[label] for label in chosen.targets.tolist()], dtype=torch.int64)
    return replace(chosen, targets=labels, clean_targets=labels)


def _require_noise(entry: DataSet, p_label_noise: float, noise_type: str) -> None:
    if not 0 <= p_label_noise <= 1:
        raise InputError(f"p_label_noise must lie in [0, 1], got {p_label_noise}.")
    if noise_type not in ("sym", "asym"):
        raise InputError(f"noise_type must be 'sym' or 'asym', got {noise_type!r}.")
    if noise_type == "asym" and entry.confusions is None:
        able = ", ".join(name for name, other in DATASETS.items() if other.confusions is not None)
        raise InputError(f"noise_type 'asym' is defined for {able} only, got {entry.name}.")


def _with_noise(split: Split, entry: DataSet, share: float, noise_type: str, seed: int) -> Split:
    if noise_type == "sym":
        return with_symmetric_noise(split, share, num_classes=entry.num_classes, seed=seed)
    if not share:
        return split
    assert entry.confusions is not None
    generator = torch.Generator().manual_seed(seed)
    noisy = asymmetric_noise(split.targets, share, confusions=entry.confusions, generator=generator)
    return replace(split, targets=noisy)


def with_symmetric_noise(split: Split, share: float, *, num_classes: int, seed: int) -> Split:
    """The split with a share of its labels flipped to any other class; see :func:`symmetric_noise`."""
    if not share:
        return split
    generator = torch.Generator().manual_seed(seed)
    noisy = symmetric_noise(split.targets, share, num_classes=num_classes, generator=generator)
    return replace(split, targets=noisy)
