"""The picture of what a network sees."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowland.deep.images import write_image_grid

from .room import make_data, small


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


@pytest.mark.parametrize(("count", "rows"), [(64, 8), (100, 8), (9, 2), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_in_rows_of_eight_in_their_own_pixels(
    tmp_path: Path, count: int, rows: int, channels: int
) -> None:
    data = make_data(count, shape=(channels, 5, 4))
    write_image_grid(tmp_path / "x.png", small(), data)
    picture = decoded(tmp_path / "x.png")
    assert picture.shape == (rows * 6, 8 * 5, 3)
    for i in range(rows * 8):
        top, left = 6 * (i // 8), 5 * (i % 8)
        tile = picture[top : top + 5, left : left + 4]
        if i < min(count, 64):
            assert np.array_equal(
                tile, np.broadcast_to(data.train.inputs[i].permute(1, 2, 0).numpy(), tile.shape)
            )
        else:
            assert not tile.any()


def test_images_of_a_set_that_is_augmented_are_shown_augmented_and_always_alike(tmp_path: Path) -> None:
    data = make_data(64, shape=(3, 8, 8))
    names = {
        "plain": small(),
        "augmented": small(dataset="cifar10"),
        "again": small(dataset="cifar10"),
        "other seed": small(dataset="cifar10", seed=1),
        "switched off": small(dataset="cifar10", no_data_augm=True),
    }
    for name, config in names.items():
        write_image_grid(tmp_path / f"{name}.png", config, data)
    pictures = {name: decoded(tmp_path / f"{name}.png") for name in names}
    assert not np.array_equal(pictures["augmented"], pictures["plain"])
    assert np.array_equal(pictures["augmented"], pictures["again"])
    assert not np.array_equal(pictures["augmented"], pictures["other seed"])
    assert np.array_equal(pictures["switched off"], pictures["plain"])


def test_values_outside_the_range_of_pixels_are_shown_as_black_or_white(tmp_path: Path) -> None:
    data = make_data(8)
    values = data.train.inputs.float() / 255 * 4 - 2
    write_image_grid(tmp_path / "x.png", small(), replace(data, train=replace(data.train, inputs=values)))
    tile = decoded(tmp_path / "x.png")[:4, :4, 0]
    assert np.array_equal(tile, (values[0, 0].clamp(0, 1) * 255).round().numpy())
