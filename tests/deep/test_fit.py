"""A network and data that do not go together end in a sentence, an error of the network's own does not."""

import numpy as np
import pytest
import torch
from torch import nn

from deep.measured import trained
from lowland.deep.fit import Needed, require_fit
from lowland.deep.loading import load_subject
from lowland.deep.models import build_model
from lowland.deep.subject import SubjectOptions
from lowland.errors import InputError


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "one")


def fit(model, shape, classes=2, trained_on=None) -> None:
    require_fit(
        model.eval(),
        [torch.rand(1, *shape)],
        Needed(classes=classes),
        network="net",
        data="mine",
        trained_on=trained_on,
    )


def own_data(path, shape, classes):
    labels = np.arange(2 * classes) % classes
    np.savez(path, x=np.zeros((len(labels), *shape), np.uint8), y=labels)
    return SubjectOptions(device="cpu", data=str(path))


def test_a_run_on_images_of_another_shape_names_both_shapes(run_path, tmp_path) -> None:
    for shape in ((3, 8, 8), (1, 9, 8)):
        with pytest.raises(
            InputError, match=rf"^one must be given images of 1x8x8, but those of .* are {shape[0]}x"
        ):
            load_subject(str(run_path), own_data(tmp_path / "x.npz", shape, 10))
    load_subject(str(run_path), own_data(tmp_path / "x.npz", (1, 8, 8), 10))


def test_more_classes_than_outputs_are_refused_and_fewer_are_not(run_path, tmp_path) -> None:
    with pytest.raises(
        InputError, match=r"^one must tell apart all classes of .*, which has 12, but its outputs"
    ):
        load_subject(str(run_path), own_data(tmp_path / "x.npz", (1, 8, 8), 12))
    load_subject(str(run_path), own_data(tmp_path / "x.npz", (1, 8, 8), 3))
    fit(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), (1, 2, 2), classes=2)
    with pytest.raises(InputError, match="outputs are for 2"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), (1, 2, 2), classes=3)


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (1, 2, 2), "layer 1 needs 5 values, got 4"),
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), (1, 1, 1), "layer 0 needs 3 channels, got 1"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten()),
            (1, 4, 9),
            "layer 0 gets images that are too small",
        ),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), (1, 2, 2), "layer 0 needs 3 channels, got 1"),
        (nn.Sequential(nn.GroupNorm(1, 3), nn.Flatten()), (2, 2, 2), "layer 0 needs 3 channels, got 2"),
        (nn.Sequential(nn.Flatten(0), nn.Conv2d(1, 2, 1)), (1, 2, 2), "layer 1 needs 1 channels, got none"),
        (nn.Sequential(nn.MaxPool2d(3), nn.Flatten()), (1, 2, 2), "layer 0 gets images that are too small"),
    ],
)
def test_the_layer_that_cannot_take_what_it_gets_is_named(model, shape, reason) -> None:
    sizes = "x".join(map(str, shape))
    message = rf"^net must be given images of the shape that .*, but those of mine are {sizes}: {reason}"
    with pytest.raises(InputError, match=message):
        fit(model, shape)


class Own(nn.Module):
    """A user's network, without layers of PyTorch's."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.w = rows, nn.Parameter(torch.ones(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, self.rows) @ self.w


@pytest.mark.parametrize(("rows", "why"), [(4, "shape '"), (9, "mat1 and mat2 shapes cannot be multiplied")])
def test_a_network_without_layers_is_refused_with_the_words_of_pytorch(rows, why) -> None:
    fit(Own(4), (1, 2, 2))
    with pytest.raises(InputError, match=rf"^net must be given images of .* of mine are 1x3x3: {why}"):
        fit(Own(rows), (1, 3, 3))


@pytest.mark.parametrize("model", [Own(9), nn.Sequential(nn.Flatten(), nn.Linear(5, 2))])
def test_a_mistake_in_a_network_is_not_laid_on_images_of_its_own_shape(model) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        fit(model, (1, 2, 2), trained_on=(1, 2, 2))


@pytest.mark.parametrize("name", ["fc", "linear", "cnn", "lenet", "vgg16", "resnet_tiny", "resnet_tiny_gn"])
def test_every_model_refuses_images_with_other_channels(name) -> None:
    width = None if name in {"linear", "lenet"} else 4
    model = build_model(name, num_classes=3, model_width=width, image_shape=(3, 32, 32))
    fit(model, (3, 32, 32), classes=3, trained_on=(3, 32, 32))
    with pytest.raises(
        InputError, match=r"^net must be given images of 3x32x32, but those of mine are 1x32x32"
    ):
        fit(model, (1, 32, 32), classes=3, trained_on=(3, 32, 32))


class Broken(nn.Module):
    """Takes every image, and has a mistake of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(4, 2), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x.flatten(1))
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("planted"), ValueError("planted"), KeyError("planted")])
@pytest.mark.parametrize("trained_on", [None, (1, 2, 2), (1, 1, 4)])
def test_an_error_of_the_network_itself_is_left_as_it_is(error, trained_on) -> None:
    with pytest.raises(type(error), match="planted") as raised:
        fit(Broken(error), (1, 2, 2), trained_on=trained_on)
    assert not isinstance(raised.value, InputError)


def test_what_returns_no_logits_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^net must return a row of logits for each example, got \(1, 1, 2, 2\)"
    ):
        fit(nn.Conv2d(1, 1, 1), (1, 2, 2))


def test_nothing_stays_on_the_network_and_no_draw_is_taken() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    before = torch.get_rng_state()
    fit(model, (1, 2, 2))
    assert not any(module._forward_pre_hooks for module in model.modules())
    drawn = torch.rand(2)
    torch.set_rng_state(before)
    torch.rand(1, 1, 2, 2)  # the image of this test
    torch.testing.assert_close(drawn, torch.rand(2))


def test_test_images_of_another_shape_than_the_training_images_are_refused(tmp_path, run_path) -> None:
    x, other = np.zeros((4, 1, 8, 8), np.uint8), np.zeros((4, 1, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(4), x_test=other, y_test=np.arange(4))
    with pytest.raises(InputError, match=r"must be of one shape in all parts, got 1x8x8 in train, "):
        load_subject(str(run_path), SubjectOptions(device="cpu", data=str(tmp_path / "x.npz")))
