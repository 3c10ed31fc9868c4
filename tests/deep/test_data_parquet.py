"""Parquet files of the Hub's layout: found, fetched, read, and refused by name when they are wrong."""

import fnmatch
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lowland.deep.data import DATASETS, load_training_data
from lowland.deep.data.parquet import read_images
from lowland.deep.data.source import ParquetSource
from lowland.errors import InputError

REAL_DATA = os.environ.get("LOWLAND_DATA")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's folders, or the network."""
    monkeypatch.delenv("LOWLAND_DATA", raising=False)
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def random_pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    columns: tuple[str, str] = ("image", "label"),
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": image, "path": None} for image in images], struct)
    pq.write_table(pa.table({columns[0]: rows, columns[1]: pa.array(labels, pa.int64())}), path)
    return path


def write_part(path: Path, n: int = 20, *, shape: tuple[int, ...] = (28, 28), seed: int = 0) -> np.ndarray:
    """A small file with labels 0, 1, …, 9, 0, …; returns the pixels."""
    columns = ("img", "label") if "cifar10" in str(path) else ("image", "label")
    pixels = random_pixels(n, *shape, seed=seed)
    write_parquet(path, [encoded(image) for image in pixels], [i % 10 for i in range(n)], columns)
    return pixels


def source_of(dataset: str) -> ParquetSource:
    source = DATASETS[dataset].train
    assert isinstance(source, ParquetSource)
    return source


MNIST, CIFAR10 = source_of("mnist"), source_of("cifar10")


def test_png_pixels_and_labels_come_back_exactly(tmp_path: Path) -> None:
    pixels = random_pixels(7, 4, 5, 3)
    path = write_parquet(tmp_path / "x.parquet", [encoded(p) for p in pixels], range(7), ("img", "label"))
    images, labels = read_images([path], CIFAR10)
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)
    assert labels.tolist() == list(range(7))


def test_jpeg_pixels_are_those_that_pillow_decodes(tmp_path: Path) -> None:
    files = [encoded(p, "JPEG") for p in random_pixels(3, 8, 8, 3)]
    images, _ = read_images(
        [write_parquet(tmp_path / "x.parquet", files, [0, 1, 2], ("img", "label"))], CIFAR10
    )
    for image, file in zip(images, files, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(file))))


def test_grayscale_images_have_one_channel_and_become_gray_where_colours_are_expected(tmp_path: Path) -> None:
    pixels = random_pixels(2, 6, 5)
    files = [encoded(p) for p in pixels]
    images, _ = read_images([write_parquet(tmp_path / "gray.parquet", files, [3, 4])], MNIST)
    assert np.array_equal(images.numpy(), pixels[:, None])
    images, _ = read_images(
        [write_parquet(tmp_path / "rgb.parquet", files, [3, 4], ("img", "label"))], CIFAR10
    )
    assert np.array_equal(images.numpy(), np.repeat(pixels[:, None], 3, axis=1))


def test_several_files_count_in_the_order_given(tmp_path: Path) -> None:
    pixels = random_pixels(5, 4, 4)
    files = [encoded(p) for p in pixels]
    first = write_parquet(tmp_path / "a.parquet", files[:2], [0, 1])
    second = write_parquet(tmp_path / "b.parquet", files[2:], [2, 3, 4])
    images, labels = read_images([first, second], MNIST)
    assert np.array_equal(images.numpy()[:, 0], pixels)
    assert labels.tolist() == [0, 1, 2, 3, 4]


GOOD = encoded(random_pixels(1, 4, 4)[0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            [GOOD, b"garbage", GOOD],
            [0, 1, 2],
            r"^Row 1 of .*bad\.parquet must hold a PNG or JPEG image .*\.$",
        ),
        (
            [GOOD, GOOD, GOOD[: len(GOOD) // 2]],
            [0, 1, 2],
            r"^Row 2 of .*bad\.parquet must hold a PNG or JPEG image .*\.$",
        ),
        (
            [GOOD[: len(GOOD) // 2], GOOD],
            [0, 1],
            r"^Row 0 of .*bad\.parquet must hold a PNG or JPEG image .*\.$",
        ),
        ([GOOD, None], [0, 1], r"^Row 1 of .*bad\.parquet must hold an image, got none\.$"),
        (
            [GOOD, encoded(random_pixels(1, 4, 4, 3)[0])],
            [0, 1],
            r"^Row 1 of .* image of mode L, got mode RGB\.$",
        ),
        (
            [GOOD, GOOD, encoded(random_pixels(1, 4, 6)[0])],
            [0, 1, 2],
            r"^All images of .*bad\.parquet must have the size of the first, 4×4, got 4×6 in row 2\.$",
        ),
        ([GOOD, GOOD], [0, 10], r"^Labels of mnist must lie in 0\.\.9, got 10 in row 1 of .*bad\.parquet\.$"),
        ([GOOD, GOOD], [-1, 0], r"^Labels of mnist must lie in 0\.\.9, got -1 in row 0 of .*bad\.parquet\.$"),
        (
            [GOOD, GOOD],
            [3, None],
            r"^Labels of mnist must lie in 0\.\.9, got None in row 1 of .*bad\.parquet\.$",
        ),
        ([], [], r"^.*bad\.parquet must have at least one row, got none\.$"),
    ],
)
def test_a_wrong_row_is_named(
    tmp_path: Path, images: list[bytes | None], labels: list[int | None], message: str
) -> None:
    path = write_parquet(tmp_path / "bad.parquet", images, labels)
    with pytest.raises(InputError, match=message):
        read_images([path], MNIST)


def test_files_whose_images_differ_in_size_are_named(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", [GOOD], [0])
    second = write_parquet(tmp_path / "b.parquet", [encoded(random_pixels(1, 5, 4)[0])], [0])
    with pytest.raises(
        InputError, match=r"must have one size, got 4×4 in .*a\.parquet and 5×4 in .*b\.parquet\.$"
    ):
        read_images([first, second], MNIST)


@pytest.mark.parametrize("keep", [0, 3, 100, -4, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path / "cut.parquet", [GOOD] * 3, [0, 1, 2])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        InputError, match=r"cut\.parquet must be a complete Parquet file, but reading it failed: .*\.$"
    ):
        read_images([path], MNIST)


def test_missing_columns_are_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [GOOD], [0], ("picture", "label"))
    with pytest.raises(
        InputError, match=r"'image' and 'label' of mnist, each once, got \['picture', 'label'\]\.$"
    ):
        read_images([path], MNIST)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (
            pa.array([b"x"]),
            pa.array([0]),
            r"^Column 'image' of .* must be a struct with a field 'bytes', got binary\.$",
        ),
        (
            pa.array([{"bytes": b"x"}]),
            pa.array(["0"]),
            r"^Column 'label' of .* must hold integers, got string\.$",
        ),
    ],
)
def test_columns_of_the_wrong_type_are_named(
    tmp_path: Path, image: pa.Array, label: pa.Array, message: str
) -> None:
    pq.write_table(pa.table({"image": image, "label": label}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        read_images([tmp_path / "x.parquet"], MNIST)


def first_images(dataset: str, **options: Any) -> np.ndarray:
    """The training and validation images in the order of the file."""
    data = load_training_data(dataset, **options)
    images = torch.cat([data.train.inputs, data.validation.inputs])
    indices = torch.cat([data.train.indices, data.validation.indices])
    return images[indices.argsort()].numpy()


@pytest.mark.parametrize("below", ["", "mnist", "data/deep"])
def test_files_are_found_anywhere_below_the_sets_folder(tmp_path: Path, below: str) -> None:
    pixels = write_part(tmp_path / "sets/mnist" / below / "train-00000-of-00001.parquet")
    write_part(tmp_path / "sets/mnist" / below / "test-00000-of-00001.parquet", seed=1)
    assert np.array_equal(first_images("mnist", data_dir=tmp_path / "sets")[:, 0], pixels)


def test_the_environment_names_the_folder_and_the_argument_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {}
    for seed, folder in enumerate(("environment", "argument")):
        wanted[folder] = write_part(tmp_path / folder / "mnist/train-00000-of-00001.parquet", seed=seed)
        write_part(tmp_path / folder / "mnist/test-00000-of-00001.parquet", seed=9)
    monkeypatch.setenv("LOWLAND_DATA", str(tmp_path / "environment"))
    assert np.array_equal(first_images("mnist")[:, 0], wanted["environment"])
    assert np.array_equal(
        first_images("mnist", data_dir=str(tmp_path / "argument"))[:, 0], wanted["argument"]
    )


def test_the_sets_configuration_is_preferred(tmp_path: Path) -> None:
    cropped = write_part(tmp_path / "svhn/cropped_digits/train-00000-of-00001.parquet", shape=(8, 8, 3))
    write_part(tmp_path / "svhn/cropped_digits/test-00000-of-00001.parquet", shape=(8, 8, 3), seed=1)
    write_part(tmp_path / "svhn/cropped_digits/extra-00000-of-00001.parquet", shape=(8, 8, 3), seed=1)
    write_part(tmp_path / "svhn/a_full_numbers/train-00000-of-00001.parquet", shape=(9, 9, 3), seed=2)
    assert np.array_equal(first_images("svhn", data_dir=tmp_path).transpose(0, 2, 3, 1), cropped)


def test_two_folders_without_the_configuration_are_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_part(tmp_path / "svhn" / folder / "train-00000-of-00001.parquet", shape=(8, 8, 3))
    with pytest.raises(InputError, match=r"in one folder, got it in .*one and .*two\.$"):
        load_training_data("svhn", data_dir=tmp_path)


def test_shards_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    shards = [
        write_part(tmp_path / f"mnist/train-{i:05d}-of-00011.parquet", 3, seed=i) for i in reversed(range(11))
    ]
    write_part(tmp_path / "mnist/test-00000-of-00001.parquet")
    assert np.array_equal(first_images("mnist", data_dir=tmp_path)[:, 0], np.concatenate(shards[::-1]))


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    for i in (0, 2):
        write_part(tmp_path / f"mnist/train-{i:05d}-of-00003.parquet")
    with pytest.raises(
        InputError, match=r"must hold all the files .*-of-00003\), got train-00000.*, train-00002.*\.$"
    ):
        load_training_data("mnist", data_dir=tmp_path)


def test_a_folder_without_the_part_tells_what_is_there(tmp_path: Path) -> None:
    write_part(tmp_path / "mnist/train-00000-of-00001.parquet")
    with pytest.raises(
        InputError, match=r"mnist must hold test-\*\.parquet of mnist, got train-00000-of-00001\.parquet\.$"
    ):
        load_training_data("mnist", data_dir=tmp_path)


def test_a_data_folder_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^data_dir must be an existing folder, got '.*nowhere'\.$"):
        load_training_data("mnist", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("LOWLAND_DATA", str(tmp_path / "lost"))
    with pytest.raises(InputError, match=r"^LOWLAND_DATA must be an existing folder, got '.*lost'\.$"):
        load_training_data("mnist")


def test_training_and_test_images_of_different_shapes_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "mnist/train-00000-of-00001.parquet")
    write_part(tmp_path / "mnist/test-00000-of-00001.parquet", shape=(8, 8))
    with pytest.raises(
        InputError, match=r"of mnist must have one shape, got \(1, 28, 28\) and \(1, 8, 8\)\.$"
    ):
        load_training_data("mnist", data_dir=tmp_path)


def test_changed_files_are_decoded_anew(tmp_path: Path) -> None:
    write_part(tmp_path / "mnist/test-00000-of-00001.parquet")
    for seed in (0, 1, 0):
        pixels = write_part(tmp_path / "mnist/train-00000-of-00001.parquet", seed=seed)
        assert np.array_equal(first_images("mnist", data_dir=tmp_path)[:, 0], pixels)
    assert len(list((tmp_path / "cache").glob("mnist-train-*.safetensors"))) == 2


def test_a_subset_shares_the_cache_of_its_set(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_part(tmp_path / f"mnist/{part}-00000-of-00001.parquet", 40)
    load_training_data("mnist_binary", data_dir=tmp_path)
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert [name.rsplit("-", 1)[0] for name in names] == ["mnist-test", "mnist-train"]
    load_training_data("mnist", data_dir=tmp_path)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == names


def test_cifar10c_trains_on_cifar10_and_is_tested_on_all_corruptions(tmp_path: Path) -> None:
    train = write_part(tmp_path / "cifar10/train-00000-of-00001.parquet", shape=(8, 8, 3))
    corruptions = [
        write_part(tmp_path / f"cifar10c/{name}/test-00000-of-00001.parquet", 4, shape=(8, 8, 3), seed=seed)
        for seed, name in enumerate(("blur", "fog", "snow"))
    ]
    data = load_training_data("cifar10c", data_dir=tmp_path)
    assert np.array_equal(first_images("cifar10c", data_dir=tmp_path).transpose(0, 2, 3, 1), train)
    assert np.array_equal(data.test.inputs.permute(0, 2, 3, 1).numpy(), np.concatenate(corruptions))


def test_cifar10c_is_never_downloaded(tmp_path: Path) -> None:
    write_part(tmp_path / "cifar10/train-00000-of-00001.parquet", shape=(8, 8, 3))
    with pytest.raises(
        InputError, match=r"cifar10c .* it cannot be downloaded: .* <folder>/cifar10c/test-\*\.parquet"
    ):
        load_training_data("cifar10c", data_dir=tmp_path)


class FakeHub:
    """Serves a folder as the Hub's client does: patterns, a cache, and an error when a copy is asked for."""

    def __init__(self, served: Path, cache: Path) -> None:
        self.served, self.cache, self.downloads = served, cache, list[dict[str, Any]]()

    def __call__(
        self, repo_id: str, *, local_files_only: bool, allow_patterns: list[str], **options: Any
    ) -> str:
        snapshot = self.cache / repo_id / options["revision"]
        if local_files_only:
            if snapshot.is_dir():
                return str(snapshot)
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        self.downloads.append({"repo_id": repo_id, "allow_patterns": allow_patterns, **options})
        for path in self.served.rglob("*.parquet"):
            name = path.relative_to(self.served)
            if any(fnmatch.fnmatch(str(name), pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / name)
        return str(snapshot)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], FakeHub]:
    def serve() -> FakeHub:
        hub = FakeHub(tmp_path / "served", tmp_path / "fake-hub")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
        return hub

    return serve


def test_a_set_that_is_not_local_is_downloaded_once_at_its_pinned_revision(
    tmp_path: Path, serve: Callable[[], FakeHub]
) -> None:
    pixels = write_part(tmp_path / "served/cropped_digits/train-00000-of-00001.parquet", shape=(8, 8, 3))
    write_part(tmp_path / "served/cropped_digits/test-00000-of-00001.parquet", shape=(8, 8, 3), seed=1)
    write_part(tmp_path / "served/full_numbers/train-00000-of-00001.parquet", shape=(9, 9, 3))
    hub = serve()
    for _ in range(2):
        assert np.array_equal(first_images("svhn").transpose(0, 2, 3, 1), pixels)
    common = {
        "repo_id": "ufldl-stanford/svhn",
        "repo_type": "dataset",
        "revision": "f9e1717d73324ebbc1ece84267ccd80d0aca0690",
    }
    assert hub.downloads == [
        {**common, "allow_patterns": ["cropped_digits/train-*.parquet"]},
        {**common, "allow_patterns": ["cropped_digits/test-*.parquet"]},
    ]


def test_a_local_set_is_not_downloaded(tmp_path: Path, serve: Callable[[], FakeHub]) -> None:
    for part in ("train", "test"):
        write_part(tmp_path / f"mnist/{part}-00000-of-00001.parquet")
    hub = serve()
    load_training_data("mnist", data_dir=tmp_path)
    assert not hub.downloads


def test_a_download_with_another_hash_is_refused(tmp_path: Path, serve: Callable[[], FakeHub]) -> None:
    write_part(tmp_path / "served/mnist/train-00000-of-00001.parquet")
    serve()
    with pytest.raises(
        InputError, match=r"train-00000-of-00001\.parquet must have the SHA-256 f2c01285.*, got .*; delete"
    ):
        load_training_data("mnist")
    assert not (tmp_path / "cache").exists()


def test_a_download_with_the_known_hash_is_accepted(
    tmp_path: Path, serve: Callable[[], FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served/mnist"
    pixels = write_part(served / "train-00000-of-00001.parquet")
    write_part(served / "test-00000-of-00001.parquet")
    assert MNIST.hub is not None
    known = {"train": hashlib.sha256((served / "train-00000-of-00001.parquet").read_bytes()).hexdigest()}
    pinned = replace(MNIST, hub=replace(MNIST.hub, sha256=known))
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], train=pinned, test=pinned))  # type: ignore[arg-type]
    serve()
    assert np.array_equal(first_images("mnist")[:, 0], pixels)


@pytest.mark.parametrize("given", [False, True])
def test_a_failed_download_tells_where_it_looked_and_how_to_get_the_set(tmp_path: Path, given: bool) -> None:
    """By the Hub's own client, offline."""
    looked = rf"there is no {tmp_path}/cifar100" if given else "neither data_dir nor LOWLAND_DATA is given"
    with pytest.raises(InputError, match=looked) as caught:
        load_training_data("cifar100", data_dir=tmp_path if given else None)
    message = str(caught.value)
    assert "the download failed with LocalEntryNotFoundError" in message
    assert "huggingface.co/datasets/uoft-cs/cifar100" in message
    assert "<folder>/cifar100/cifar100/train-*.parquet" in message
    assert "\n" not in message


def test_any_error_of_the_client_becomes_the_same_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise RuntimeError("429 Too Many Requests.\nTry later.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        InputError, match=r"the download failed with RuntimeError: 429 Too Many Requests: put its"
    ):
        load_training_data("mnist")


@pytest.mark.skipif(REAL_DATA is None, reason="needs LOWLAND_DATA with the real images")
@pytest.mark.parametrize(
    ("dataset", "column", "rows"),
    [("cifar10", "img", (50_000, 10_000)), ("mnist", "image", (60_000, 10_000))],
)
def test_the_real_images_are_those_that_pillow_decodes(
    dataset: str, column: str, rows: tuple[int, int]
) -> None:
    assert REAL_DATA is not None
    source = source_of(dataset)
    path = next((Path(REAL_DATA) / dataset).rglob("test-*.parquet"))
    images, labels = read_images([path], source)
    assert len(images) == rows[1]
    table = pq.read_table(path)
    for row in range(0, rows[1], 997):
        expected = np.asarray(Image.open(io.BytesIO(table[column][row]["bytes"].as_py())))
        assert np.array_equal(images[row].permute(1, 2, 0).numpy(), expected.reshape(*expected.shape[:2], -1))
        assert labels[row] == table["label"][row].as_py()


@pytest.mark.stress
@pytest.mark.skipif(REAL_DATA is None, reason="needs LOWLAND_DATA with the real images")
def test_cifar10_is_whole_and_balanced(tmp_path: Path) -> None:
    data = load_training_data("cifar10", data_dir=REAL_DATA, cache_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    labels = torch.cat([data.train.targets, data.validation.targets])
    assert torch.bincount(labels).tolist() == [5_000] * 10
    assert torch.bincount(data.test.targets).tolist() == [1_000] * 10
    assert data.input_shape == (3, 32, 32)


@pytest.mark.skipif(REAL_DATA is None, reason="needs LOWLAND_DATA with the real images")
def test_mnist_binary_is_the_only_pair_of_digits_with_the_originals_13007_training_images(
    tmp_path: Path,
) -> None:
    data = load_training_data("mnist_binary", data_dir=REAL_DATA, cache_dir=tmp_path)
    assert len(data.train) + len(data.validation) == 13_007
    whole = load_training_data("mnist", data_dir=REAL_DATA, cache_dir=tmp_path)
    count = torch.bincount(torch.cat([whole.train.targets, whole.validation.targets])).tolist()
    pairs = [(a, b) for a in range(10) for b in range(a) if count[a] + count[b] == 13_007]
    assert pairs == [(7, 1)]
    ones = data.train.indices[data.train.targets == 0]
    labels = dict(zip(whole.train.indices.tolist(), whole.train.targets.tolist(), strict=True))
    assert {labels[row] for row in ones.tolist() if row in labels} == {1}
