"""Data of somebody's own are read as they are, and what cannot be read is named."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageOps

from lowland.deep.data import OwnData, divided_own_data, read_own_data, undivided_own_data
from lowland.deep.data.name import name_of_data
from lowland.deep.data.scaling import Scaling
from lowland.deep.data.understood import understood
from lowland.deep.options import OwnDataOptions
from lowland.errors import InputError

from .belongings import (
    COLOURS,
    encoded,
    image_column,
    picture,
    write_features,
    write_images,
    write_table,
)

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(path: Path | str, **options: Any) -> OwnData:
    return read_own_data(OwnDataOptions(data=str(path), **options))


def refused(path: Path | str, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# Image folders


def test_a_folder_holds_the_pixels_of_its_files_class_after_class(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "my photos")
    data = read(folder)
    files = sorted(folder.rglob("*.png"))
    wanted = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    assert np.array_equal(data.parts["train"].inputs.numpy(), wanted)
    assert data.classes == ("birds", "cats", "dogs")
    assert data.parts["train"].targets.tolist() == [[*COLOURS].index(file.parent.name) for file in files]
    assert data.form == "image folder"


def test_the_second_reading_is_the_cache_s_and_the_same(tmp_path: Path, cache: Path) -> None:
    folder = write_images(tmp_path / "photos", size=None)
    first = read(folder, image_size=7)
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns
    again = read(folder, image_size=7)
    assert file.stat().st_mtime_ns == before
    assert torch.equal(again.parts["train"].inputs, first.parts["train"].inputs)
    assert (again.notes, again.sha256) == (first.notes, first.sha256)
    assert read(folder, image_size=6).parts["train"].inputs.shape[2:] == (6, 6)


def test_another_pixel_is_another_hash_and_not_the_cache_s(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos")
    before = read(folder)
    picture(RNG, 6, 5, (1, 2, 3)).save(folder / "cats" / "00.png")
    after = read(folder)
    assert after.sha256 != before.sha256
    assert not torch.equal(after.parts["train"].inputs, before.parts["train"].inputs)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation", "test"), ("train", "dev", "test")]
)
def test_levels_of_train_val_and_test_are_understood(names: tuple[str, ...], tmp_path: Path) -> None:
    for i, name in enumerate(names):
        write_images(tmp_path / "photos" / name, 3 + i, seed=i)
    data = read(tmp_path / "photos")
    assert {part: len(examples) for part, examples in data.parts.items()} == {
        "train": 9,
        "validation": 12,
        "test": 15,
    }
    divided = divided_own_data(data)
    assert [len(part) for part in divided.parts.values()] == [9, 12, 15]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "vehicles")
    (folder / "cats").rename(folder / "train")
    assert read(folder).classes == ("birds", "dogs", "train")


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "gif", "tiff", "PNG"])
def test_formats_of_pictures(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        picture(RNG, 4, 4, 120).save(tmp_path / "x" / name / f"one.{suffix}")
    assert read(tmp_path / "x", channels=1).parts["train"].inputs.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 4), ("P", 3)])
def test_pictures_keep_their_channels(mode: str, channels: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        picture(RNG, 4, 5, (9, 99, 199)).convert(mode).save(tmp_path / "x" / name / "one.png")
    assert read(tmp_path / "x").parts["train"].inputs.shape == (2, channels, 4, 5)


def test_pictures_are_resized_by_their_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200  # the square in the middle
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        Image.fromarray(wide if name == "a" else wide.transpose(1, 0, 2)).save(
            tmp_path / "x" / name / "1.png"
        )
    data = read(tmp_path / "x", image_size=4)
    assert data.parts["train"].inputs.shape == (2, 3, 4, 4)
    assert int(data.parts["train"].inputs.min()) > 180  # what is beside it is black
    assert data.notes == ("resized from 8x24 ... 24x8, the middle cut out",)


def test_a_photo_that_was_taken_sideways_is_upright(tmp_path: Path) -> None:
    image = picture(RNG, 4, 7, (9, 99, 199))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        image.save(tmp_path / "x" / name / "1.png", exif=exif)
    pixels = read(tmp_path / "x").parts["train"].inputs[0]
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "x" / "a" / "1.png"))
    assert pixels.shape == (3, 7, 4)
    assert np.array_equal(pixels.numpy(), np.asarray(upright).transpose(2, 0, 1))


def test_what_is_hidden_is_not_read_and_links_are_followed_once(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos")
    (folder / "cats" / ".checkpoints").mkdir()
    (folder / "cats" / ".checkpoints" / "a.png").write_bytes((folder / "cats" / "00.png").read_bytes())
    (folder / "cats" / "__MACOSX").mkdir()
    (folder / "cats" / "__MACOSX" / "a.png").write_bytes(b"")
    elsewhere = write_images(tmp_path / "elsewhere", 4)
    (folder / "dogs" / "more").symlink_to(elsewhere / "dogs")
    (elsewhere / "dogs" / "around").symlink_to(folder / "dogs")
    assert read(folder).parts["train"].targets.bincount().tolist() == [10, 10, 14]


@pytest.mark.parametrize(("channels", "value"), [(1, 255), (3, 255)])
@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_what_is_transparent_is_white(mode: str, channels: int, value: int, tmp_path: Path) -> None:
    see_through = {"P": 0, "L": 10, "RGB": (10, 10, 10)}[mode]
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        image = Image.new(mode, (4, 4), see_through)
        if mode == "P":
            image.putpalette([10, 10, 10] * 256)
        image.save(tmp_path / "x" / name / "1.png", transparency=see_through)
    assert read(tmp_path / "x", channels=channels).parts["train"].inputs.unique().tolist() == [value]
    assert read(tmp_path / "x").parts["train"].inputs.shape[1] == 4


def test_files_that_are_no_images_are_left_aside_and_said(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos")
    (folder / "cats" / "notes.txt").write_text("x")
    (folder / "README.md").write_text("x")
    (folder / ".DS_Store").write_text("x")
    assert read(folder).notes == ("left aside: 2 other files (README.md, cats/notes.txt)",)


def spoil_sizes(folder: Path) -> None:
    picture(RNG, 9, 4, (1, 2, 3)).save(folder / "cats" / "99.png")


def spoil_modes(folder: Path) -> None:
    picture(RNG, 6, 5, 100).save(folder / "cats" / "gray.png")


def spoil_files(folder: Path) -> None:
    (folder / "cats" / "00.png").write_bytes(b"no image")
    whole = (folder / "dogs" / "01.png").read_bytes()
    (folder / "dogs" / "01.png").write_bytes(whole[: len(whole) // 2])


def spoil_depth(folder: Path) -> None:
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(folder / "cats" / "00.png")


def spoil_class(folder: Path) -> None:
    (folder / "horses").mkdir()


def spoil_levels(folder: Path) -> None:
    write_images(folder / "train")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            spoil_sizes,
            r"one size, got 2 sizes from 6x5 \(birds/00\.png\) to 9x4 \(cats/99\.png\); --image_size 32",
        ),
        (spoil_modes, r"as many channels, got L \(cats/gray\.png\), RGB \(birds/00\.png\); --channels 3"),
        (spoil_files, r"2 of 30 cannot: cats/00\.png \(no image\); dogs/01\.png \(image file is truncated\)"),
        (spoil_depth, r"cats/00\.png \(mode I;16, which has not 8 bits a channel\)"),
        (spoil_class, r"horses must hold at least one image of the class horses, got none"),
        (spoil_levels, r"must have train, val and test beside one another, or classes, got birds too"),
    ],
)
def test_a_folder_that_cannot_be_read_is_told_in_a_sentence(spoil: Any, message: str, tmp_path: Path) -> None:
    spoil(write_images(tmp_path / "photos"))
    refused(tmp_path / "photos", message)


def test_a_picture_that_ends_early_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", 2, size=(40, 40))
    whole = (folder / "dogs" / "01.png").read_bytes()
    (folder / "dogs" / "01.png").write_bytes(whole[: len(whole) // 2])
    refused(folder, r"1 of 6 cannot: dogs/01\.png \(")


def test_a_class_that_training_does_not_know_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "x" / "train")
    write_images(tmp_path / "x" / "test")
    (tmp_path / "x" / "test" / "cats").rename(tmp_path / "x" / "test" / "cows")
    refused(tmp_path / "x", r"test must have the classes of .*train, birds, cats, dogs, got cows too")


def test_parts_without_training_images_are_no_classes(tmp_path: Path) -> None:
    for name in ("val", "test"):
        write_images(tmp_path / "x" / name)
    refused(tmp_path / "x", "must hold train beside test, val")
    (tmp_path / "y" / "train").mkdir(parents=True)
    (tmp_path / "y" / "test").mkdir()
    picture(RNG, 3, 3, 5).save(tmp_path / "y" / "train" / "a.png")
    refused(tmp_path / "y", "must hold a directory of images for each class, got")


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "must hold a directory of images for each class, got none")
    picture(RNG, 3, 3, 5).save(tmp_path / "a.png")
    refused(tmp_path, "for each class, got 1 images beside one another")
    (tmp_path / "only").mkdir()
    picture(RNG, 3, 3, 5).save(tmp_path / "only" / "a.png")
    refused(tmp_path, "must hold at least two classes, got only alone")


# Parquet


def test_a_table_of_pictures_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    images, labels = image_column(9), pa.array([i % 3 for i in range(9)])
    names = {"info": {"features": {"label": {"names": ["red", "green", "blue"]}}}}
    file = write_table(
        tmp_path / "x.parquet", {"img": images, "label": labels}, {"huggingface": json.dumps(names)}
    )
    data = read(file)
    wanted = [np.asarray(Image.open(__import__("io").BytesIO(row["bytes"].as_py()))) for row in images]
    assert np.array_equal(data.parts["train"].inputs.numpy(), np.stack(wanted).transpose(0, 3, 1, 2))
    assert data.classes == ("red", "green", "blue")
    assert data.parts["train"].targets.tolist() == labels.to_pylist()


def test_names_of_class_numbers_are_not_given_to_text(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["red", "green"]}}}}
    columns = {"img": image_column(2), "label": pa.array(["red", "green"])}
    data = read(write_table(tmp_path / "x.parquet", columns, {"huggingface": json.dumps(names)}))
    assert [data.classes[i] for i in data.parts["train"].targets.tolist()] == ["red", "green"]


def test_parts_are_told_by_the_names_of_files_or_of_folders(tmp_path: Path) -> None:
    columns = {"a": pa.array(RNG.normal(size=6)), "y": pa.array([0, 1] * 3)}
    for i, name in enumerate(
        ("train-00000-of-00002", "train-00001-of-00002", "validation-0", "test-0", "other-0")
    ):
        write_table(tmp_path / "by file" / f"{name}.parquet", {k: v[: 6 - i] for k, v in columns.items()})
    for name in ("train", "test"):
        write_table(tmp_path / "by folder" / "default" / name / "0000.parquet", columns)
    data = read(tmp_path / "by file")
    assert {k: len(v) for k, v in data.parts.items()} == {"train": 11, "validation": 4, "test": 3}
    assert data.notes[-1] == "left aside: 1 other files (other-0.parquet)"
    assert {k: len(v) for k, v in read(tmp_path / "by folder").parts.items()} == {"train": 6, "test": 6}


def test_columns_of_numbers_are_features_and_lists_of_whole_numbers_tokens(tmp_path: Path) -> None:
    numbers = {"a": [0.5, 1.5], "b": [3, 4], "price": [0.25, 2.0]}
    data = read(write_table(tmp_path / "n.parquet", numbers), target_column="price").parts["train"]
    assert data.inputs.tolist() == [[0.5, 3.0], [1.5, 4.0]]
    assert data.targets.tolist() == [0.25, 2.0]
    lists = {"input_ids": [[5, 6, 7], [8]], "text": ["a", "b"], "label": ["no", "yes"]}
    tokens = read(write_table(tmp_path / "t.parquet", lists))
    assert tokens.parts["train"].inputs.tolist() == [[5, 6, 7], [8, 0, 0]]
    mask = tokens.parts["train"].mask
    assert mask is not None
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert tokens.classes == ("no", "yes")


def test_what_a_tokenizer_left_is_read_with_its_mask(tmp_path: Path) -> None:
    columns = {"input_ids": [[5, 6, 0], [7, 0, 0]], "attention_mask": [[1, 1, 0], [1, 0, 0]], "label": [0, 1]}
    data = read(write_table(tmp_path / "x.parquet", columns)).parts["train"]
    assert data.inputs.tolist() == columns["input_ids"]
    assert data.mask is not None
    assert data.mask.int().tolist() == columns["attention_mask"]
    ragged = {"input_ids": [[5, 6], [7]], "attention_mask": [[1, 1], [1]], "label": [0, 1]}
    data = read(write_table(tmp_path / "y.parquet", ragged)).parts["train"]
    assert data.mask is not None
    assert data.mask.int().tolist() == [[1, 1], [1, 0]]


def test_several_numbers_are_predicted_and_the_index_of_pandas_is_none(tmp_path: Path) -> None:
    columns = {"a": [1.0, 2.0], "y": [[0.5, 1.5], [2.5, 3.5]], "__index_level_0__": [0, 1]}
    data = read(write_table(tmp_path / "x.parquet", columns))
    assert data.parts["train"].inputs.tolist() == [[1.0], [2.0]]
    assert data.parts["train"].targets.tolist() == columns["y"]
    assert data.notes == ("columns: a to y",)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"a": [1.0], "b": [2.0]},
            {},
            r"target_column must say which column .* a \(double\), b \(double\), got none",
        ),
        ({"a": [1.0], "y": [0]}, {"input_column": "c"}, r"input_column must be a column of .* got 'c'"),
        ({"a": [1.0], "y": [0]}, {"input_column": "y", "target_column": "y"}, "input_column must be another"),
        ({"a": ["x"], "y": [0]}, {}, "must have a column of images or lists, or columns of numbers only"),
        ({"a": [[1], [2]], "b": [[3], [4]], "y": [0, 1]}, {}, "input_column must say which column"),
        ({"a": [1.0, None], "y": [0, 1]}, {}, "'a' of .* must have a value in every row, got none in row 1"),
        ({"a": [1.0, 2.0], "y": [0, -1]}, {}, r"class numbers .* must lie in 0\.\.65535, got -1"),
        ({"a": [1.0], "y": [0]}, {"image_size": 4}, "image_size must be left out for a table without images"),
    ],
)
def test_a_table_that_is_not_clear_is_told_in_a_sentence(
    columns: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(write_table(tmp_path / "x.parquet", columns), message, **options)


def test_damaged_and_missing_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    refused(tmp_path / "x.parquet", "must be a complete Parquet file, but reading it failed")
    columns = {"a": [1.0], "y": [0]}
    write_table(tmp_path / "shards" / "train-00000-of-00002.parquet", columns)
    refused(tmp_path / "shards", "must hold all the files that their names count")
    for config in ("one", "two"):
        write_table(tmp_path / "configs" / config / "train-0.parquet", columns)
    refused(
        tmp_path / "configs", "must hold each part in one folder, got one and two; give the one that is meant"
    )
    write_table(tmp_path / "tests" / "test-0.parquet", columns)
    refused(tmp_path / "tests", "must hold files of the part train, got test only")
    image = {
        "img": pa.array([encoded(picture(RNG, 3, 3, 5)), {"bytes": b"x", "path": None}]),
        "label": [0, 1],
    }
    refused(write_table(tmp_path / "i.parquet", image), r"1 of 2 cannot: row 1 \(no image\)")


def test_a_set_of_the_hub_is_its_files_at_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"a": [1.0, 2.0], "y": [0, 1]}
    write_table(tmp_path / "snapshot" / "plain" / "train-0.parquet", columns)
    asked = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert len(read("hf://owner/name@v1/plain").parts["train"]) == 2
    assert len(read("hf://datasets/owner/name@refs%2Fconvert%2Fparquet").parts["train"]) == 2
    assert asked[0] == ("owner/name", "v1", ["plain/*.parquet"])
    assert asked[-1] == ("owner/name", "refs/convert/parquet", ["*.parquet"])
    refused("hf://owner", "must be hf://owner/name@revision/folder, got hf://owner")
    refused("hf://owner/name@v1/nothing", "must hold Parquet files, got none")

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    refused("hf://owner/name", "that can be downloaded: ConnectionError: no route")


# Arrays


def test_arrays_are_what_their_types_and_shapes_say(tmp_path: Path) -> None:
    y = np.arange(4) % 2
    pixels = RNG.integers(0, 256, (4, 3, 5, 6)).astype(np.uint8)
    assert torch.equal(
        read(npz(tmp_path / "a.npz", x=pixels, y=y)).parts["train"].inputs, torch.from_numpy(pixels)
    )
    gray = read(npz(tmp_path / "b.npz", x=pixels[:, 0], y=y)).parts["train"].inputs
    assert gray.shape == (4, 1, 5, 6)
    features = read(npz(tmp_path / "c.npz", x=RNG.normal(size=(4, 7)), y=y)).parts["train"]
    assert (features.inputs.dtype, features.inputs.shape, features.mask) == (torch.float32, (4, 7), None)
    tokens = read(npz(tmp_path / "d.npz", x=np.arange(8).reshape(4, 2), y=y)).parts["train"]
    assert tokens.inputs.dtype == torch.int64
    assert tokens.mask is not None
    assert bool(tokens.mask.all())
    assert read(npz(tmp_path / "e.npz", x=np.arange(4.0), y=y)).parts["train"].inputs.shape == (4, 1)


def test_parts_of_arrays_go_by_several_names_and_tokens_are_padded_to_the_longest_part(
    tmp_path: Path,
) -> None:
    x, y = np.arange(12).reshape(4, 3), np.arange(4) % 2
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    file = npz(
        tmp_path / "x.npz",
        x_train=x,
        y_train=y,
        mask_train=mask,
        x_val=x[:2, :2],
        y_val=y[:2],
        x_test=x,
        y_test=y,
    )
    data = read(file)
    assert {part: tuple(examples.inputs.shape) for part, examples in data.parts.items()} == {
        "train": (4, 3),
        "validation": (2, 3),
        "test": (4, 3),
    }
    masks = {part: examples.mask for part, examples in data.parts.items()}
    assert masks["train"] is not None
    assert masks["validation"] is not None
    assert masks["train"].int().tolist() == mask.tolist()
    assert masks["validation"].int().tolist() == [[1, 1, 0]] * 2


X, Y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "must hold y, it holds x"),
        ({"x": X, "y": Y, "x_test": X}, "must hold y_test, it holds x, x_test, y"),
        ({"x": X, "y": Y, "z": Y}, "must hold x and y, and perhaps mask, .* got z"),
        ({"x": X, "x_train": X, "y": Y}, "must hold x of train once, got it twice"),
        ({"x": X, "y": Y[:3]}, "as many of each, got 4 of inputs, 3 of targets"),
        ({"x": X[:0], "y": Y[:0]}, "must hold at least one example with a target, got none"),
        ({"x": np.where(np.eye(4, 3) > 0, np.nan, X), "y": Y}, "must be finite numbers, got nan in row 0"),
        ({"x": X, "y": np.array([0.0, np.inf, 0, 0])}, "targets .* must be finite numbers, got inf in row 1"),
        ({"x": np.zeros((4, 8, 8, 3), np.uint8), "y": Y}, r"x\.transpose\(0, 3, 1, 2\) moves the channels"),
        ({"x": np.zeros((4, 2, 2, 2), np.int64), "y": Y}, "must be tokens .n, length., bytes"),
        ({"x": -np.ones((4, 2), np.int64), "y": Y}, "tokens .* must be whole numbers from 0, got -1"),
        ({"x": X, "y": Y, "mask": X}, "the mask .* must be left out for what is no sequence of tokens"),
        (
            {"x": np.ones((4, 2), np.int64), "y": Y, "mask": X},
            "the mask .* must be 1 at each token and 0 at padding",
        ),
        (
            {"x": np.ones((4, 2), np.int64), "y": Y, "mask": np.eye(4, 2)},
            "keep a token of every .* none in row 2",
        ),
        ({"x": X, "y": np.array([-1, 1, 1, -1])}, "numbers to predict must be floating-point"),
        (
            {"x": X, "y": np.zeros((4, 2), np.int64)},
            "a class for each example, or a row of floating-point numbers",
        ),
        (
            {"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y},
            "one shape in all parts, got 3 in train, 2 in test",
        ),
        (
            {"x": X, "y": Y, "x_test": X, "y_test": Y + 0.5},
            "of one kind in all parts, got classes and numbers",
        ),
    ],
)
def test_arrays_that_are_no_data_are_told_in_a_sentence(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(npz(tmp_path / "x.npz", **arrays), message)


@pytest.mark.parametrize(
    "option", [{"input_column": "a"}, {"image_size": 4}, {"channels": 3}, {"target_column": "y"}]
)
def test_options_that_arrays_do_not_read_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    refused(
        write_features(tmp_path / "x.npz"), rf"^{next(iter(option))} must be left out for arrays", **option
    )


def test_what_is_nowhere_or_something_else_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "data must be a folder of images .* and there is no ")
    (tmp_path / "x.csv").write_text("a,b")
    refused(tmp_path / "x.csv", r"package\.module:function, got .*x\.csv\.$")


# Functions


def test_a_function_returns_arrays_or_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "pair": (X, Y),
        "mapping": {"x": X, "y": Y, "x_test": X, "y_test": Y},
        "parts": {"train": (X, Y), "test": {"x": X, "y": Y}},
        "items": {"train": [(X[i], int(Y[i])) for i in range(4)], "val": (X, Y)},
        "pictures": [(picture(RNG, 4, 5, (9, 9, 9)), "cat"), (picture(RNG, 4, 5, (99, 9, 9)), "dog")],
    }
    for name, value in made.items():
        monkeypatch.setattr("own_code.nothing", lambda value=value: value)
        found = read("own_code:nothing").parts
        shape = (2, 3, 4, 5) if name == "pictures" else (4, 3)
        assert {tuple(examples.inputs.shape) for examples in found.values()} == {shape}, name
    assert read("own_code:nothing").classes == ("cat", "dog")


def test_what_a_data_set_draws_is_drawn_once_and_alike_every_time() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again = read("own_code:drawn"), read("own_code:drawn")
    assert torch.equal(first.parts["train"].inputs, again.parts["train"].inputs)
    assert first.sha256 == again.sha256
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "must be .x, y., a map-style Dataset .* got int"),
        ((1, 2, 3), "got a tuple of int, int, int"),
        ({"test": (X, Y)}, "must return a part train, got test"),
        ({"train": (X, Y), "training": (X, Y)}, "must return each part once"),
        ([], "must hold at least one example, got none"),
        ([3], "example 0 of .* must be an input and its target, got int"),
        ([(X[0], None)], "the target of example 0 .* must be a class, its name or numbers, got None"),
        ([(X[0], 0), (X[0, :2], 1)], "must be a sequence of tokens where lengths differ, got torch.float32"),
        ([(X, 0), (X[:2], 1)], "inputs .* must be of one shape, or sequences"),
        ([("text", 0), ("more", 1)], "must be examples that can be read, but it raised TypeError"),
        ([({"a": 1}, 0)], "must be numbers or pictures|must be examples that can be read"),
        ([(None, 0)], "must be numbers or pictures|must be examples that can be read"),
        ({"x": None, "y": [0]}, "must be numbers or pictures"),
        ((np.zeros((2, 2), complex), [0, 1]), "must be real numbers, got torch.complex128"),
        (
            (torch.utils.data.TensorDataset(torch.zeros(2, 1)),) * 2,
            "must be a mapping of train and test to data sets",
        ),
        (([[1, 2], []], [0, 1]), "row 1 .* must have at least one token, got none"),
    ],
)
def test_what_a_function_returns_that_is_no_data_is_told(
    value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("own_code.nothing", lambda: value)
    refused("own_code:nothing", message)


def test_a_function_or_data_set_that_fails_is_told_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(
        "own_code:failing",
        r"^data own_code:failing must .* raised ValueError at own_code\.py:\d+: no such thing\.$",
    )
    monkeypatch.setattr("own_code.Drawn.__getitem__", lambda *_: 1 / 0)
    refused("own_code:drawn", r"example 0 of .* must be there, but it raised ZeroDivisionError")


# Divided


def test_without_a_test_part_a_fifth_is_one_whatever_the_seed_and_a_tenth_of_the_rest_is_by_the_seed(
    tmp_path: Path,
) -> None:
    own = read(write_features(tmp_path / "x.npz", 50))
    first, second = divided_own_data(own, seed=0), divided_own_data(own, seed=1)
    assert [len(part) for part in first.parts.values()] == [36, 4, 10]
    assert torch.equal(first.test.indices, second.test.indices)
    assert set(first.validation.indices.tolist()) != set(second.validation.indices.tolist())
    rows = [row for part in first.parts.values() for row in part.inputs.tolist()]
    assert sorted(rows) == sorted(own.parts["train"].inputs.tolist())
    fewer = divided_own_data(own, seed=0, frac_train=0.5)
    assert torch.equal(fewer.train.indices, first.train.indices[:18])
    assert torch.equal(fewer.test.indices, first.test.indices)


def test_noise_flips_labels_of_training_and_validation_and_the_same_rows_are_split(tmp_path: Path) -> None:
    own = read(write_images(tmp_path / "photos", 40))
    clean, noisy = divided_own_data(own, seed=2), divided_own_data(own, seed=2, p_label_noise=0.5)
    for name, flipped in (("train", 0.5), ("validation", 0.5), ("test", 0.0)):
        a, b = clean.parts[name], noisy.parts[name]
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(b.clean_targets, a.targets)
        assert int((b.targets != b.clean_targets).sum()) == round(flipped * len(a))


def test_too_few_examples_and_noise_without_labels_are_refused(tmp_path: Path) -> None:
    own = read(write_features(tmp_path / "x.npz", 4))
    with pytest.raises(InputError, match="must have enough examples for a validation part, got 4"):
        divided_own_data(own)
    with pytest.raises(
        InputError, match=r"p_label_noise must be left out for targets that are numbers, got 0\.1"
    ):
        divided_own_data(own, p_label_noise=0.1)


def test_data_to_measure_on_are_not_divided(tmp_path: Path) -> None:
    data = undivided_own_data(read(write_features(tmp_path / "x.npz", 30)))
    assert [len(part) for part in data.parts.values()] == [30, 0, 0]
    assert (data.num_classes, data.input_shape, data.kind, data.has_classes) == (1, (3,), "features", False)


def test_standardized_inputs_have_mean_zero_and_variance_one_over_the_training_examples(
    tmp_path: Path,
) -> None:
    for file, over in (
        (write_images(tmp_path / "photos"), (0, 2, 3)),
        (write_features(tmp_path / "x.npz"), (0,)),
    ):
        plain = divided_own_data(read(file))
        data = plain.standardized()
        inputs = data.train.inputs.double()
        assert inputs.mean(over).abs().max() < 1e-5
        assert (inputs.var(over, correction=0) - 1).abs().max() < 1e-4
        assert data.scaling is not None
        pixels = plain.test.inputs.double() / (255 if plain.kind == "images" else 1)
        wanted = (pixels - data.scaling.mean) / data.scaling.deviation
        torch.testing.assert_close(data.test.inputs.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_constant_feature_is_zero_and_other_shapes_are_refused() -> None:
    scaling = Scaling.of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert scaling(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    with pytest.raises(InputError, match=r"must begin with the dimensions \(2,\), .* got \(3,\)"):
        scaling(torch.zeros(1, 3))


# Said


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    data = divided_own_data(read(write_images(tmp_path / "photos", size=None), image_size=8))
    lines = understood(data, "photos", None)
    assert lines[0] == "data: photos, image folder: 30 images of 3x8x8"
    assert re.fullmatch(r"  resized from \d+x\d+ \.\.\. \d+x\d+, the middle cut out", lines[1])
    assert lines[2:] == [
        "  targets: 3 classes: birds: 10, cats: 10, dogs: 10",
        "  split: 22 train, 2 validation, 6 test; validation is a tenth, by the seed, "
        "test is a fifth, the same for every seed",
        "  inputs: pixels in [0, 1], not normalized",
        "  augmentation: none",
    ]
    numbers = divided_own_data(read(write_features(tmp_path / "x.npz"))).standardized()
    said = understood(numbers, "x", None)
    assert said[0] == "data: x, .npz file: 60 examples of 3 numbers"
    y = np.load(tmp_path / "x.npz")["y"]
    deviation = f"{y.std(ddof=1):.4g}"
    assert (
        said[1]
        == f"  targets: a number each (regression), mean {y.mean():.4g}, standard deviation {deviation}"
    )
    assert said[3] == "  inputs: standardized by the training set's mean and deviation of each feature"
    tokens = understood(divided_own_data(read("own_code:text")), "text", None)
    assert tokens[0] == "data: text, what a function returns: 92 sequences of up to 6 tokens, vocabulary of 9"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("photos", "photos"),
        ("a b/../my photos", "my-photos"),
        ("x.y.npz", "x.y"),
        ("sets/flowers/train-00000-of-00001.parquet", "flowers"),
        ("sets/flowers.parquet", "flowers"),
        ("hf://o/n", "n"),
        ("hf://datasets/o/n@main/p", "n"),
        ("m.n:f", "m.n.f"),
        ("/", "data"),
        ("~nobody.at.all/x", "x"),
    ],
)
def test_names_of_data(data: str, name: str) -> None:
    assert name_of_data(data) == name
