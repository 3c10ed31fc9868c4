"""What a run trains on: the split, the share that is used, label noise, padding."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowland.deep.data import Split, TrainingData, load_training_data
from lowland.deep.data.noise import asymmetric_noise, symmetric_noise
from lowland.deep.data.pad import zero_pad
from lowland.deep.data.sets import DATASETS
from lowland.deep.data.split import divide
from lowland.errors import InputError


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's folders."""
    monkeypatch.delenv("LOWLAND_DATA", raising=False)
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path_factory.mktemp("cache")))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _parts(data: TrainingData) -> tuple[Split, Split]:
    return data.train, data.validation


def _flipped(split: Split) -> set[int]:
    return set(split.indices[split.targets != split.clean_targets].tolist())


@given(n=st.integers(1, 500), seed=st.integers(-(2**40), 2**70), frac_train=st.sampled_from([1.0, 0.999]))
def test_training_and_validation_are_a_partition_with_a_tenth_held_out(
    n: int, seed: int, frac_train: float
) -> None:
    train, validation = divide(n, seed=seed, frac_train=frac_train)
    assert len(validation) == round(n / 10)
    assert len(train) == round(frac_train * (n - round(n / 10)))
    both = train.tolist() + validation.tolist()
    assert len(set(both)) == len(both)
    if frac_train == 1:
        assert sorted(both) == list(range(n))


def test_the_split_is_the_seeds_and_nothing_elses() -> None:
    torch.manual_seed(0)
    first = divide(1000, seed=3, frac_train=1.0)
    torch.manual_seed(1)
    again = divide(1000, seed=3, frac_train=1.0)
    other = divide(1000, seed=4, frac_train=1.0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_smaller_share_is_the_beginning_of_a_larger_one_with_the_same_validation() -> None:
    whole = load_training_data("digits", seed=7)
    half = load_training_data("digits", seed=7, frac_train=0.5)
    assert len(half.train) == round(0.5 * len(whole.train))
    assert torch.equal(half.train.indices, whole.train.indices[: len(half.train)])
    assert torch.equal(half.train.inputs, whole.train.inputs[: len(half.train)])
    assert torch.equal(half.validation.indices, whole.validation.indices)
    assert len(half.test) == len(whole.test)


def test_the_validation_images_are_a_fair_sample() -> None:
    _, validation = divide(100_000, seed=0, frac_train=1.0)
    counts = torch.bincount(validation // 10_000)
    assert (counts - 1000).abs().max() < 120  # four standard deviations


@pytest.mark.parametrize("frac_train", [0.0, -0.5, 1.5, float("nan"), 1e-6])
def test_a_share_that_leaves_nothing_or_more_than_all_is_refused(frac_train: float) -> None:
    with pytest.raises(InputError, match=r"^frac_train must .*, got "):
        load_training_data("gaussians_binary", frac_train=frac_train)


@given(
    n=st.integers(0, 300), share=st.floats(0, 1), num_classes=st.integers(2, 12), seed=st.integers(0, 2**31)
)
def test_symmetric_noise_changes_exactly_its_share_of_the_labels(
    n: int, share: float, num_classes: int, seed: int
) -> None:
    labels = torch.randint(num_classes, (n,), generator=_generator(seed))
    before = labels.clone()
    noisy = symmetric_noise(labels, share, num_classes=num_classes, generator=_generator(seed))
    assert int((noisy != labels).sum()) == round(share * n)
    assert bool(((noisy >= 0) & (noisy < num_classes)).all())
    assert torch.equal(labels, before)


def test_symmetric_noise_is_uniform_on_the_other_classes() -> None:
    labels = torch.arange(10).repeat_interleave(9000)
    noisy = symmetric_noise(labels, 1.0, num_classes=10, generator=_generator())
    counts = torch.bincount(10 * labels + noisy, minlength=100).view(10, 10)
    assert counts.diagonal().tolist() == [0] * 10
    others = counts[~torch.eye(10, dtype=torch.bool)].double()
    chi_squared = ((others - 1000) ** 2 / 1000).sum()
    assert chi_squared < 125  # 80 degrees of freedom; larger has probability 0.001


def test_symmetric_noise_does_not_look_at_the_classes_it_chooses_from() -> None:
    labels = torch.arange(10).repeat_interleave(10_000)
    noisy = symmetric_noise(labels, 0.3, num_classes=10, generator=_generator())
    flipped = torch.bincount(labels[noisy != labels])
    assert (flipped - 3000).abs().max() < 200


def test_less_noise_is_a_part_of_more_noise() -> None:
    labels = torch.randint(10, (1000,), generator=_generator())
    some, more = (symmetric_noise(labels, p, num_classes=10, generator=_generator(1)) for p in (0.2, 0.6))
    changed = some != labels
    assert torch.equal(some[changed], more[changed])


def test_asymmetric_noise_of_cifar10_confuses_the_classes_of_the_paper() -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    confusions = DATASETS["cifar10"].confusions
    assert confusions is not None
    noisy = asymmetric_noise(torch.arange(10), 1.0, confusions=confusions, generator=_generator())
    assert {names[i]: names[j] for i, j in enumerate(noisy.tolist()) if i != j} == {
        "truck": "automobile",
        "bird": "airplane",
        "cat": "dog",
        "dog": "cat",
        "deer": "horse",
    }


@pytest.mark.parametrize(("dataset", "num_classes"), [("cifar100", 100), ("svhn", 10)])
def test_asymmetric_noise_of_the_others_is_the_next_class(dataset: str, num_classes: int) -> None:
    confusions = DATASETS[dataset].confusions
    assert confusions is not None
    labels = torch.arange(num_classes)
    noisy = asymmetric_noise(labels, 1.0, confusions=confusions, generator=_generator())
    assert noisy.tolist() == [*range(1, num_classes), 0]


def test_asymmetric_noise_chooses_its_share_of_all_examples() -> None:
    labels = torch.arange(10).repeat_interleave(1000)
    every = {label: (label + 1) % 10 for label in range(10)}
    all_can_change = asymmetric_noise(labels, 0.4, confusions=every, generator=_generator())
    some_can = asymmetric_noise(labels, 0.4, confusions={3: 5}, generator=_generator())
    assert int((all_can_change != labels).sum()) == 4000
    changed = some_can != labels
    assert torch.equal(changed, (all_can_change != labels) & (labels == 3))
    assert (some_can[changed] == 5).all()


@pytest.mark.parametrize("dataset", ["digits", "mnist", "gaussians_binary", "cifar10_dog_cat"])
def test_asymmetric_noise_of_any_other_set_is_refused(dataset: str) -> None:
    with pytest.raises(
        InputError, match=rf"^noise_type 'asym' is defined for .*cifar100, svhn only, got {dataset}\.$"
    ):
        load_training_data(dataset, p_label_noise=0.1, noise_type="asym")


def test_training_and_validation_labels_are_noisy_and_test_labels_never() -> None:
    clean = load_training_data("digits")
    noisy = load_training_data("digits", p_label_noise=0.3)
    for before, after in zip(_parts(clean), _parts(noisy), strict=True):
        assert len(_flipped(after)) == round(0.3 * len(after))
        assert torch.equal(after.clean_targets, before.targets)
        assert before.clean_targets is before.targets
    assert torch.equal(noisy.test.targets, clean.test.targets)
    assert noisy.test.clean_targets is noisy.test.targets


@pytest.mark.parametrize("p_label_noise", [0.2, 1.0])
def test_the_split_does_not_depend_on_the_noise(p_label_noise: float) -> None:
    clean = load_training_data("digits", seed=5)
    noisy = load_training_data("digits", seed=5, p_label_noise=p_label_noise)
    for before, after in zip(_parts(clean), _parts(noisy), strict=True):
        assert torch.equal(before.indices, after.indices)
        assert torch.equal(before.inputs, after.inputs)


def test_the_noise_is_the_seeds_and_each_part_has_its_own() -> None:
    first, again, other = (load_training_data("digits", seed=s, p_label_noise=0.5) for s in (1, 1, 2))
    assert torch.equal(first.train.targets, again.train.targets)
    both = set(first.train.indices.tolist()) & set(other.train.indices.tolist())
    assert _flipped(first.train) & both != _flipped(other.train) & both
    equally_long = load_training_data("gaussians_binary", p_label_noise=0.5, frac_train=1 / 9)
    flips = [split.targets != split.clean_targets for split in _parts(equally_long)]
    assert [len(flip) for flip in flips] == [100, 100]
    assert not torch.equal(*flips)


@pytest.mark.parametrize("p_label_noise", [-0.1, 1.01, float("nan")])
def test_noise_that_is_no_share_is_refused(p_label_noise: float) -> None:
    with pytest.raises(InputError, match=r"^p_label_noise must lie in \[0, 1\], got "):
        load_training_data("digits", p_label_noise=p_label_noise)


def test_an_unknown_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"^noise_type must be 'sym' or 'asym', got 'pair'\.$"):
        load_training_data("digits", noise_type="pair")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (31, 30), (30, 31), (32, 32), (1, 32)])
def test_padding_puts_the_image_in_the_middle_of_zeros(height: int, width: int) -> None:
    images = torch.randint(1, 256, (2, 3, height, width), dtype=torch.uint8, generator=_generator())
    padded = zero_pad(images, 32)
    top, left = (32 - height) // 2, (32 - width) // 2
    expected = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    expected[:, :, top : top + height, left : left + width] = images
    assert torch.equal(padded, expected)


def test_padded_digits_are_the_digits_in_the_middle() -> None:
    plain, padded = load_training_data("digits"), load_training_data("digits", pad_to=32)
    assert padded.input_shape == (1, 32, 32)
    for before, after in (
        (plain.train, padded.train),
        (plain.validation, padded.validation),
        (plain.test, padded.test),
    ):
        assert torch.equal(after.inputs[:, :, 12:20, 12:20], before.inputs)
        assert after.inputs.sum(dtype=torch.int64) == before.inputs.sum(dtype=torch.int64)
        assert after.inputs.dtype == torch.uint8


def test_images_that_are_too_large_to_pad_are_refused() -> None:
    with pytest.raises(InputError, match=r"^pad_to=32 needs images of at most 32×32, got 1×100\.$"):
        load_training_data("gaussians_binary", pad_to=32)


def _noisy_split() -> Split:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    return Split(
        images, torch.tensor([1, 0, 1, 0, 1, 0]), torch.zeros(6, dtype=torch.int64), torch.arange(10, 16)
    )


def test_head_and_select_take_all_four_tensors() -> None:
    split = _noisy_split()
    assert len(split) == 6
    for part, positions in ((split.head(4), [0, 1, 2, 3]), (split.select(torch.tensor([5, 2])), [5, 2])):
        assert len(part) == len(positions)
        assert part.inputs.flatten().tolist() == positions
        assert part.targets.tolist() == [(p + 1) % 2 for p in positions]
        assert part.clean_targets.tolist() == [0] * len(positions)
        assert part.indices.tolist() == [10 + p for p in positions]
    assert len(split.head(100)) == 6
    assert len(split.head(0)) == 0
    with pytest.raises(InputError, match=r"must be non-negative, got -1\.$"):
        split.head(-1)


def test_a_split_without_noise_keeps_one_tensor_of_labels_wherever_it_goes() -> None:
    labels = torch.arange(4)
    split = Split(torch.zeros(4, 1, 2, 2), labels, labels, labels)
    for part in (
        split.head(2),
        split.select(torch.tensor([1, 3])),
        split.to("cpu"),
        split.to(torch.device("meta")),
    ):
        assert part.clean_targets is part.targets
    assert _noisy_split().to("cpu").clean_targets is not _noisy_split().to("cpu").targets


def test_a_split_moves_with_all_its_tensors() -> None:
    moved = _noisy_split().to("meta")
    for tensor in (moved.inputs, moved.targets, moved.clean_targets, moved.indices):
        assert tensor.device.type == "meta"


def test_a_split_whose_tensors_disagree_in_length_is_refused_under_test() -> None:
    with pytest.raises(TypeError):
        Split(torch.zeros(3, 1, 2, 2), torch.arange(4), torch.arange(4), torch.arange(4))


def test_a_local_folder_changes_nothing_for_embedded_and_synthetic_sets(tmp_path: Path) -> None:
    assert len(load_training_data("digits", data_dir=tmp_path).test) == 500
    assert len(load_training_data("uniform_noise", data_dir=tmp_path).test) == 1000
