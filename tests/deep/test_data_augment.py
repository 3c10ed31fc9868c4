"""Crops and flips of a batch, against the same done to one image at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from lowland.deep.data import Augmentation, augment, augmentation, to_float
from lowland.deep.data.augment import crop_and_flip
from lowland.errors import InputError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=_generator(seed))


def _with_pillow(image: Tensor, top: int, left: int, flip: bool, padding: int) -> Tensor:
    pixels = image.permute(1, 2, 0).numpy()
    h, w = pixels.shape[:2]
    picture = Image.fromarray(pixels)
    if flip:
        picture = ImageOps.mirror(picture)
    picture = ImageOps.expand(picture, border=padding, fill=0).crop((left, top, left + w, top + h))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@given(
    n=st.integers(1, 5),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    padding=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_each_image_equals_pillows_mirror_expand_and_crop(
    n: int, h: int, w: int, padding: int, seed: int
) -> None:
    images = _random_images(n, 3, h, w, seed=seed)
    tops, lefts = torch.randint(2 * padding + 1, (2, n), generator=_generator(seed))
    flips = torch.rand(n, generator=_generator(seed)) < 0.5
    ours = crop_and_flip(images, tops, lefts, flips, padding=padding)
    for i in range(n):
        expected = _with_pillow(images[i], int(tops[i]), int(lefts[i]), bool(flips[i]), padding)
        assert torch.equal(ours[i], expected)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_each_image_equals_a_slice_of_it_padded(channels: int) -> None:
    images = torch.randn(6, channels, 5, 7, generator=_generator())
    tops, lefts = torch.tensor([0, 1, 2, 3, 4, 2]), torch.tensor([4, 0, 2, 1, 3, 2])
    ours = crop_and_flip(images, tops, lefts, padding=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        assert torch.equal(ours[i], padded[i, :, top : top + 5, left : left + 7])


def test_a_batch_that_is_not_contiguous_gives_the_same() -> None:
    images = _random_images(4, 8, 8, 3).permute(0, 3, 1, 2)
    ours = augment(images, _generator())
    assert torch.equal(ours, augment(images.contiguous(), _generator()))


def test_a_flip_is_an_involution_and_a_centred_crop_changes_nothing() -> None:
    images = _random_images(4, 3, 8, 8)
    centre, everyone = torch.full((4,), 4), torch.ones(4, dtype=torch.bool)
    once = crop_and_flip(images, centre, centre, everyone, padding=4)
    assert not torch.equal(once, images)
    assert torch.equal(crop_and_flip(once, centre, centre, everyone, padding=4), images)
    assert torch.equal(crop_and_flip(images, centre, centre, padding=4), images)


def test_every_offset_and_flip_occurs_equally_often_and_independently() -> None:
    # One bright pixel at a place of its own tells the offset and the flip of its image.
    images = torch.zeros(16200, 1, 12, 12, dtype=torch.uint8)
    images[:, 0, 5, 4] = 255
    found = augment(images, _generator(3))[:, 0].nonzero()
    assert len(found) == len(images)
    rows, columns = found[:, 1], found[:, 2]
    # The pixel is in row 9 of the padded image, and in column 8 or, mirrored, 11; nine offsets each way.
    assert rows.unique().tolist() == list(range(1, 10))
    assert columns.unique().tolist() == list(range(12))
    counts = torch.bincount((rows - 1) * 12 + columns, minlength=9 * 12).view(9, 12)
    ways = torch.tensor([1.0] * 3 + [2.0] * 6 + [1.0] * 3)
    expected = len(images) / (9 * 9 * 2) * ways.expand(9, 12)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 160  # 107 degrees of freedom; larger has probability 0.0007


def test_half_of_the_images_are_flipped() -> None:
    images = torch.zeros(10_000, 1, 1, 2, dtype=torch.uint8)
    images[:, :, :, 0] = 255
    flipped = augment(images, _generator(), padding=0)[:, 0, 0, 1] == 255
    assert abs(flipped.double().mean() - 0.5) < 0.02  # four standard deviations
    assert torch.equal(augment(images, _generator(), padding=0, flip=False), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_augmentation_keeps_type_and_shape_and_its_argument(dtype: torch.dtype) -> None:
    images = _random_images(5, 3, 8, 6).to(dtype)
    before = images.clone()
    after = augment(images, _generator())
    assert after.dtype == dtype
    assert after.shape == images.shape
    assert torch.equal(images, before)


def test_the_generator_alone_decides() -> None:
    images = _random_images(32, 3, 8, 8)
    torch.manual_seed(0)
    once = augment(images, _generator(5))
    torch.manual_seed(1)
    assert torch.equal(augment(images, _generator(5)), once)
    assert not torch.equal(augment(images, _generator(6)), once)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(InputError, match=r"^padding must be non-negative, got -1\.$"):
        augment(_random_images(1, 1, 4, 4), _generator(), padding=-1)


def test_pixels_become_their_value_over_255() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = torch.tensor([value / 255 for value in range(256)], dtype=torch.float32)
    assert torch.equal(to_float(values).flatten(), expected)
    assert to_float(values).dtype == torch.float32


def test_floating_point_images_pass_unchanged() -> None:
    images = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    assert to_float(images) is images


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar10", Augmentation(crop=True, flip=True)),
        ("cifar10_dog_cat", Augmentation(crop=True, flip=True)),
        ("cifar10_horse_car", Augmentation(crop=True, flip=True)),
        ("cifar10c", Augmentation(crop=True, flip=True)),
        ("cifar100", Augmentation(crop=True, flip=True)),
        ("svhn", Augmentation(crop=True, flip=False)),
        ("mnist", Augmentation(crop=False, flip=False)),
        ("mnist_binary", Augmentation(crop=False, flip=False)),
        ("digits", Augmentation(crop=False, flip=False)),
        ("gaussians_binary", Augmentation(crop=False, flip=False)),
        ("uniform_noise", Augmentation(crop=False, flip=False)),
    ],
)
def test_what_each_set_does_with_its_images(dataset: str, expected: Augmentation) -> None:
    assert augmentation(dataset) == expected


def test_an_augmentation_does_what_it_says() -> None:
    images = _random_images(16, 3, 8, 8)
    assert Augmentation(crop=False, flip=False)(images, _generator()) is images
    both = Augmentation(crop=True, flip=True)(images, _generator())
    assert torch.equal(both, augment(images, _generator()))
    crop = Augmentation(crop=True, flip=False)(images, _generator())
    assert torch.equal(crop, augment(images, _generator(), flip=False))
    flip = Augmentation(crop=False, flip=True)(images, _generator())
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(flip, images, strict=True))


@pytest.mark.parametrize(("crop", "flip"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_part_of_a_batch_is_augmented_as_it_is_in_the_whole(crop: bool, flip: bool) -> None:
    images = torch.randint(256, (7, 3, 6, 6), dtype=torch.uint8)
    augmentation = Augmentation(crop=crop, flip=flip)
    whole = augmentation(images, torch.Generator().manual_seed(1))
    for rows in (slice(0, 3), slice(3, 7)):
        generator = torch.Generator().manual_seed(1)
        assert torch.equal(augmentation.part(images[rows], generator, rows=rows, of=7), whole[rows])
