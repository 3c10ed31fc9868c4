"""The table of sets: what is in each, and where it came from."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lowland.deep import data
from lowland.deep.data import DATASETS, load_training_data
from lowland.deep.data.source import ParquetSource
from lowland.errors import InputError

DIGITS = Path(data.__file__).parent / "digits"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's folders."""
    monkeypatch.delenv("LOWLAND_DATA", raising=False)
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))


def write_numbered(path: Path, labels: list[int], columns: tuple[str, str], *, channels: int) -> None:
    """Images of which each pixel is the row's number."""
    rows = []
    for row in range(len(labels)):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3) if channels == 3 else (8, 8), row, np.uint8)).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({columns[0]: rows, columns[1]: pa.array(labels, pa.int64())}), path)


def test_the_names_are_those_of_the_options() -> None:
    assert set(DATASETS) == {
        *("digits", "mnist", "mnist_binary", "svhn", "cifar10", "cifar10_horse_car", "cifar10_dog_cat"),
        *("cifar10c", "cifar100", "uniform_noise", "gaussians_binary"),
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifar-10", "cifar10"), ("MNIST_binary", "mnist_binary"), ("cifar101", "cifar10"), ("", None)],
)
def test_an_unknown_set_is_refused_with_the_nearest(name: str, nearest: str | None) -> None:
    with pytest.raises(InputError, match=r"^dataset must be one of digits, mnist, .*") as caught:
        load_training_data(name)
    hint = "." if nearest is None else f"; nearest: {nearest}"
    assert f", got {name!r}{hint}" in str(caught.value)


def test_the_embedded_digits_need_no_folder_and_no_network() -> None:
    digits = load_training_data("digits")
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1167, 130, 500)
    assert digits.input_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.test.inputs.dtype == torch.uint8
    # Every class about equally often, so both parts are a fair sample.
    assert torch.bincount(digits.train.targets).min() > 100
    assert torch.bincount(digits.test.targets).min() > 35


def test_the_embedded_digits_are_sixteenths_in_the_order_of_their_rows_hashes() -> None:
    parts = [pq.read_table(DIGITS / f"{part}-00000-of-00001.parquet") for part in ("train", "test")]
    assert [len(part) for part in parts] == [1297, 500]
    rows = [
        int(path.removesuffix(".png"))
        for part in parts
        for path in (r["path"] for r in part["image"].to_pylist())
    ]
    assert rows == sorted(range(1797), key=lambda row: hashlib.sha256(str(row).encode()).hexdigest())
    levels = {round(v * 255 / 16) for v in range(17)}
    for image in (r["bytes"] for part in parts for r in part["image"].to_pylist()):
        pixels = np.asarray(Image.open(io.BytesIO(image)))
        assert pixels.shape == (8, 8)
        assert set(pixels.flat) <= levels


def test_the_first_digit_of_the_origin_is_the_zero_that_its_documentation_shows() -> None:
    """Row 0 of the 1,797, as printed in scikit-learn's user guide."""
    expected = [
        [0, 0, 5, 13, 9, 1, 0, 0],
        [0, 0, 13, 15, 10, 15, 5, 0],
        [0, 3, 15, 2, 0, 11, 8, 0],
        [0, 4, 12, 0, 0, 8, 8, 0],
        [0, 5, 8, 0, 0, 9, 8, 0],
        [0, 4, 11, 0, 1, 12, 7, 0],
        [0, 2, 14, 5, 10, 12, 0, 0],
        [0, 0, 6, 13, 10, 0, 0, 0],
    ]
    tables = [pq.read_table(DIGITS / f"{part}-00000-of-00001.parquet") for part in ("train", "test")]
    (row,) = [row for table in tables for row in table.to_pylist() if row["image"]["path"] == "0.png"]
    assert row["label"] == 0
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    assert np.array_equal(pixels, np.rint(np.array(expected) * 255 / 16))


def test_the_embedded_digits_have_the_hubs_metadata_and_tell_their_origin() -> None:
    schema = pq.read_schema(DIGITS / "train-00000-of-00001.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": [str(digit) for digit in range(10)], "_type": "ClassLabel"}
    readme = (DIGITS / "README.md").read_text()
    for fact in ("Alpaydin", "Kaynak", "UCI", "CC BY 4.0", "scikit-learn"):
        assert fact in readme


@pytest.mark.parametrize(
    ("dataset", "folder", "columns", "classes"),
    [
        ("cifar10_horse_car", "cifar10", ("img", "label"), {7: 0, 1: 1}),
        ("cifar10_dog_cat", "cifar10", ("img", "label"), {5: 0, 3: 1}),
        ("mnist_binary", "mnist", ("image", "label"), {1: 0, 7: 1}),
    ],
)
def test_a_subset_keeps_its_two_classes_and_knows_the_rows(
    tmp_path: Path, dataset: str, folder: str, columns: tuple[str, str], classes: dict[int, int]
) -> None:
    labels = [(7 * row) % 10 for row in range(100)]
    for part in ("train", "test"):
        write_numbered(
            tmp_path / folder / f"{part}-00000-of-00001.parquet",
            labels,
            columns,
            channels=3 if folder == "cifar10" else 1,
        )
    loaded = load_training_data(dataset, data_dir=tmp_path)
    assert loaded.num_classes == 2
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (18, 2, 20)
    for split in (loaded.train, loaded.validation, loaded.test):
        for image, label, row in zip(
            split.inputs, split.targets.tolist(), split.indices.tolist(), strict=True
        ):
            assert image.unique().tolist() == [row]
            assert label == classes[labels[row]]


def test_cifar100_is_labelled_by_its_fine_labels(tmp_path: Path) -> None:
    labels = [99 - row for row in range(20)]
    for part in ("train", "test"):
        write_numbered(
            tmp_path / "cifar100" / f"{part}-00000-of-00001.parquet",
            labels,
            ("img", "fine_label"),
            channels=3,
        )
    loaded = load_training_data("cifar100", data_dir=tmp_path)
    assert loaded.num_classes == 100
    assert loaded.test.targets.tolist() == labels


@pytest.mark.parametrize(
    "dataset", [name for name, entry in DATASETS.items() if isinstance(entry.train, ParquetSource)]
)
def test_every_source_is_pinned_or_local(dataset: str) -> None:
    for source in (DATASETS[dataset].train, DATASETS[dataset].test):
        assert isinstance(source, ParquetSource)
        if source.hub is None:
            assert source.embedded is not None or source.name == "cifar10c"
        else:
            assert len(bytes.fromhex(source.hub.revision)) == 20
            assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in source.hub.sha256.values())


def test_gaussians_are_two_clouds_around_plus_and_minus_a_unit_vector() -> None:
    loaded = load_training_data("gaussians_binary")
    assert loaded.input_shape == (1, 1, 100)
    assert loaded.num_classes == 2
    assert loaded.train.inputs.dtype == torch.float32
    means = []
    for split in (loaded.train, loaded.test):
        points = split.inputs.flatten(1).double() * (2 * split.targets - 1)[:, None]
        mean = points.mean(0)
        assert abs(mean.norm() - 1) < 0.02
        assert abs((points - mean).std() - 0.1) < 0.001
        assert 0.45 < split.targets.double().mean() < 0.55
        means.append(mean)
    assert means[0] @ means[1] > 0.99  # one direction for both


def test_noise_images_are_uniform_and_labelled_by_their_first_pixel() -> None:
    loaded = load_training_data("uniform_noise")
    assert loaded.input_shape == (1, 28, 28)
    assert loaded.num_classes == 10
    for split in (loaded.train, loaded.validation, loaded.test):
        assert [int(10 * image[0, 0, 0].item()) for image in split.inputs] == split.targets.tolist()
        assert 0 <= split.inputs.min() < split.inputs.max() < 1
    images = loaded.test.inputs.double()
    assert abs(images.mean() - 1 / 2) < 0.002
    assert abs(images.var() - 1 / 12) < 0.001


@pytest.mark.parametrize("dataset", ["gaussians_binary", "uniform_noise"])
def test_synthetic_sets_have_seeds_of_their_own(dataset: str) -> None:
    torch.manual_seed(1)
    first = load_training_data(dataset, seed=0)
    torch.manual_seed(2)
    second = load_training_data(dataset, seed=1)
    assert (len(first.train), len(first.validation), len(first.test)) == (900, 100, 1000)
    assert torch.equal(first.test.inputs, second.test.inputs)
    everything = [torch.cat([x.train.inputs, x.validation.inputs]) for x in (first, second)]
    rows = [torch.cat([x.train.indices, x.validation.indices]).argsort() for x in (first, second)]
    assert torch.equal(everything[0][rows[0]], everything[1][rows[1]])
    assert not torch.equal(everything[0][rows[0]], first.test.inputs)
