"""The table of data sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lowland.deep.data.augment import Augmentation
from lowland.deep.data.source import HubRepository, ParquetSource, SyntheticSource
from lowland.deep.data.synthetic import gaussians_binary, uniform_noise
from lowland.errors import InputError, one_of


@dataclass(frozen=True)
class DataSet:
    """One entry of the table.

    Attributes:
        name: What the option ``dataset`` calls it.
        train: Where the training images come from.
        test: Where the test images come from.
        augmentation: How its training images are varied, unless augmentation is switched off.
        keep: For a subset, the classes of the source that are kept, and the labels that they get.
        confusions: What asymmetric label noise makes of a class; ``None`` if that is not defined for the set.

    Example:
        >>> from lowland.deep.data import DATASETS
        >>> DATASETS["mnist_binary"].num_classes, DATASETS["digits"].is_at_hand
        (2, True)
    """

    name: str
    train: ParquetSource | SyntheticSource
    test: ParquetSource | SyntheticSource
    augmentation: Augmentation
    keep: Mapping[int, int] = field(default_factory=dict)
    confusions: Mapping[int, int] | None = None

    @property
    def is_at_hand(self) -> bool:
        """Whether no folder is read for it: it is drawn, or comes with the package."""
        return all(
            isinstance(part, SyntheticSource) or part.embedded is not None for part in (self.train, self.test)
        )

    @property
    def num_classes(self) -> int:
        """Number of classes after the choice of ``keep``."""
        return len(set(self.keep.values())) or self.train.num_classes


_DIGITS = ParquetSource(
    name="digits",
    num_classes=10,
    image_column="image",
    label_column="label",
    mode="L",
    embedded=Path(__file__).parent / "digits",
)
_MNIST = ParquetSource(
    name="mnist",
    num_classes=10,
    image_column="image",
    label_column="label",
    mode="L",
    hub=HubRepository(
        name="ylecun/mnist",
        revision="77f3279092a1c1579b2250db8eafed0ad422088c",
        config="mnist",
        sha256={"train": "f2c01285a9f89399335b00ee4e8d499dc4e46db5e39c74903ce5618d895eb3bf"},
    ),
)
_CIFAR10 = ParquetSource(
    name="cifar10",
    num_classes=10,
    image_column="img",
    label_column="label",
    mode="RGB",
    hub=HubRepository(
        name="uoft-cs/cifar10",
        revision="0b2714987fa478483af9968de7c934580d0bb9a2",
        config="plain_text",
        sha256={
            "train": "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
            "test": "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
        },
    ),
)
_CIFAR100 = ParquetSource(
    name="cifar100",
    num_classes=100,
    image_column="img",
    label_column="fine_label",
    mode="RGB",
    hub=HubRepository(
        name="uoft-cs/cifar100",
        revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        config="cifar100",
        sha256={"test": "98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68"},
    ),
)
_SVHN = ParquetSource(
    name="svhn",
    num_classes=10,
    image_column="image",
    label_column="label",
    mode="RGB",
    hub=HubRepository(
        name="ufldl-stanford/svhn",
        revision="f9e1717d73324ebbc1ece84267ccd80d0aca0690",
        config="cropped_digits",
    ),
)
_CIFAR10C = replace(_CIFAR10, name="cifar10c", hub=None)
_GAUSSIANS = SyntheticSource(num_classes=2, draw=gaussians_binary)
_UNIFORM_NOISE = SyntheticSource(num_classes=10, draw=uniform_noise)

_PLAIN = Augmentation(crop=False, flip=False)
_CROP = Augmentation(crop=True, flip=False)
_CROP_AND_FLIP = Augmentation(crop=True, flip=True)

_NEXT_OF_10 = {label: (label + 1) % 10 for label in range(10)}
_NEXT_OF_100 = {label: (label + 1) % 100 for label in range(100)}
# truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse
_ALIKE_IN_CIFAR10 = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}

_TABLE = (
    DataSet("digits", _DIGITS, _DIGITS, _PLAIN),
    DataSet("mnist", _MNIST, _MNIST, _PLAIN),
    DataSet("mnist_binary", _MNIST, _MNIST, _PLAIN, keep={1: 0, 7: 1}),
    DataSet("cifar10", _CIFAR10, _CIFAR10, _CROP_AND_FLIP, confusions=_ALIKE_IN_CIFAR10),
    DataSet("cifar10_horse_car", _CIFAR10, _CIFAR10, _CROP_AND_FLIP, keep={7: 0, 1: 1}),
    DataSet("cifar10_dog_cat", _CIFAR10, _CIFAR10, _CROP_AND_FLIP, keep={5: 0, 3: 1}),
    DataSet("cifar10c", _CIFAR10, _CIFAR10C, _CROP_AND_FLIP, confusions=_ALIKE_IN_CIFAR10),
    DataSet("cifar100", _CIFAR100, _CIFAR100, _CROP_AND_FLIP, confusions=_NEXT_OF_100),
    DataSet("svhn", _SVHN, _SVHN, _CROP, confusions=_NEXT_OF_10),
    DataSet("gaussians_binary", _GAUSSIANS, _GAUSSIANS, _PLAIN),
    DataSet("uniform_noise", _UNIFORM_NOISE, _UNIFORM_NOISE, _PLAIN),
)
DATASETS: Mapping[str, DataSet] = {entry.name: entry for entry in _TABLE}
"""The sets by name."""


def dataset_named(name: str) -> DataSet:
    """The table's entry of that name.

    Raises:
        InputError: If there is none; the message names the nearest.
    """
    one_of("dataset", name, DATASETS)
    return DATASETS[name]


def require_folder_read(data_dir: object, datasets: Iterable[str], of: str) -> None:
    """Raises :class:`InputError` for a folder from which none of the data sets is read.

    Args:
        data_dir: The folder, if one is given.
        datasets: All that is loaded.
        of: What they are loaded for.
    """
    if data_dir is not None and all(dataset_named(name).is_at_hand for name in datasets):
        raise InputError(f"data_dir must be left out for {of}, which reads no folder, got {data_dir}.")


def augmentation(dataset: str) -> Augmentation:
    """How a data set's training images are varied by default.

    Args:
        dataset: The set's name.

    Raises:
        InputError: If there is no such set.

    Example:
        >>> from lowland.deep.data import augmentation
        >>> augmentation("cifar10")
        Augmentation(crop=True, flip=True)
        >>> augmentation("svhn")
        Augmentation(crop=True, flip=False)
    """
    return dataset_named(dataset).augmentation
