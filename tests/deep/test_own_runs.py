"""Runs of somebody's own network, loss and data: trained, continued, measured, and refused in a sentence."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lowland.deep import Control, Interrupted, Place, TrainConfig, launch, run_name
from lowland.deep.data import divided_own_data, read_own_data
from lowland.deep.flatness import FlatnessConfig, Measure
from lowland.deep.launch import require_startable
from lowland.deep.loading import load_subject
from lowland.deep.measures import measures
from lowland.deep.new_network import new_network
from lowland.deep.scenery import scenery
from lowland.deep.state import TrainState
from lowland.deep.subject import SubjectOptions, pick_parameters
from lowland.deep.view import SceneryConfig
from lowland.errors import InputError
from lowland.runs import Run

from .belongings import write_features, write_images

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr_max": 0.05, "lr_schedule": "constant"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder with photos and a table, beside a cache of its own."""
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "photos", 20)
    write_features(tmp_path / "table.npz")
    return Place("cpu", threads=1, directory=tmp_path)


KINDS: dict[str, dict[str, Any]] = {
    "photos": {"data": "photos", "model": "own_code:net", "augment": ("crop", "flip")},
    "table": {"data": "table.npz", "model": "fc", "model_width": 5, "loss": "mse", "normalize": True},
    "a mean over the group": {
        "data": "table.npz",
        "model": "own_code:net",
        "loss": "own_code:mean_of_losses",
    },
    "text": {"data": "own_code:text", "model": "own_code:Reader"},
    "text without a mask argument, not padded": {"data": "own_code:drawn", "model": "own_code:Noisy"},
    "layers that are made late": {"data": "photos", "model": "own_code:lazy"},
    "a loss for each": {"data": "photos", "model": "fc", "model_width": 5, "loss": "own_code:each_loss"},
    "ours by a network of one's own": {"frac_train": 0.05, "model": "own_code:net"},
}


def left_by(run: Run) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    rows = [{k: repr(v) for k, v in row.items() if k != "seconds"} for row in run.rows()]
    return rows, load_file(run.model_path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "sam", [{}, {"sam_rho": 0.05, "m": 2}, {"sam_rho": 0.05, "sam_use_prev_batch": True}]
)
def test_a_run_that_was_stopped_continues_bit_for_bit(
    name: str, sam: dict[str, Any], place: Place, tmp_path: Path
) -> None:
    config = TrainConfig(**{**SMALL, **KINDS[name], **sam})
    launch(config, tmp_path / "whole", place, Control())
    asked = iter(range(99))
    with pytest.raises(Interrupted):
        launch(config, tmp_path / "stopped", place, Control(should_stop=lambda: next(asked) == 4))
    launch(
        TrainConfig.from_dict(Run.open(tmp_path / "stopped").config), tmp_path / "stopped", place, Control()
    )
    whole, stopped = left_by(Run(tmp_path / "whole")), left_by(Run(tmp_path / "stopped"))
    assert whole[0] == stopped[0]
    assert whole[1].keys() == stopped[1].keys()
    assert all(torch.equal(whole[1][key], stopped[1][key]) for key in whole[1])


def test_the_gradient_of_a_step_is_that_of_the_users_loss_by_hand(place: Place) -> None:
    config = TrainConfig(
        **{**SMALL, **KINDS["a mean over the group"], "model": "fc", "model_width": 5, "batch_size": 12}
    )
    own = read_own_data(config, directory=place.directory)
    data = divided_own_data(own)
    state = TrainState(config, data, CPU)
    before = [p.detach().clone() for p in state.params]
    inputs, targets = state._next_batch()
    model = new_network(config, data)
    model.load_state_dict(state.model.state_dict())
    torch.nn.functional.smooth_l1_loss(model(inputs)[:, 0], targets).backward()
    state.step()
    for moved, old, p in zip(state.params, before, model.parameters(), strict=True):
        torch.testing.assert_close(moved, old - 0.05 * p.grad)


def test_every_group_is_given_to_the_users_loss_by_itself(place: Place) -> None:
    seen = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(targets))
        return (outputs.reshape(targets.shape) - targets).square().mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("own_code.mean_of_losses", loss)
        config = TrainConfig(**{**SMALL, **KINDS["a mean over the group"]}, sam_rho=0.1, m=2, engine="loop")
        state = TrainState(config, divided_own_data(read_own_data(config, directory=place.directory)), CPU)
        seen.clear()
        state.step()
    # each pass: to train on, and to report
    assert seen == [2] * 16


def test_regression_finds_the_line_of_least_squares(tmp_path: Path, place: Place) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=200)).astype(np.float32)
    np.savez(tmp_path / "line.npz", x=x, y=y)
    config = TrainConfig(data="line.npz", model="linear", loss="mse", epochs=40, batch_size=36, lr_max=0.05)
    rows = launch(config, tmp_path / "x", place, Control())
    split = load_file(tmp_path / "x" / "split.safetensors")
    data = divided_own_data(read_own_data(config, directory=tmp_path))
    weights, *_ = np.linalg.lstsq(data.train.inputs.numpy(), data.train.targets.numpy(), rcond=None)
    found = load_file(tmp_path / "x" / "model.safetensors")["last._model.1.weight"].numpy()[0]
    assert np.abs(found - weights).max() < 0.01
    assert torch.equal(split["train"], data.train.indices)
    wanted = np.square(data.test.inputs.numpy() @ found - data.test.targets.numpy()).mean()
    assert rows[-1]["test_loss"] == pytest.approx(wanted, rel=1e-4)
    assert not any(name.endswith("error") for name in rows[-1])
    summary = json.loads((tmp_path / "x" / "summary.json").read_text())
    assert summary["best"]["validation_loss"] == min(row["validation_loss"] for row in rows if row["full"])


def test_padding_changes_nothing() -> None:
    """The same sequences with more padding behind them train the same network."""
    config = TrainConfig(**{**SMALL, **KINDS["text"]}, sam_rho=0.05, m=1)
    data = divided_own_data(read_own_data(config))
    longer = replace(
        data,
        **{
            name: replace(
                part,
                inputs=torch.nn.functional.pad(part.inputs, (0, 5)),
                mask=torch.nn.functional.pad(part.mask, (0, 5)),
            )
            for name, part in data.parts.items()
            if part.mask is not None
        },
    )
    states = [TrainState(config, each, CPU) for each in (data, longer)]
    for state in states:
        for _ in range(4):
            state.step()
    for a, b in zip(states[0].params, states[1].params, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_two_runs_of_a_network_that_draws_from_all_generators_are_the_same(
    place: Place, tmp_path: Path
) -> None:
    config = TrainConfig(**{**SMALL, **KINDS["text without a mask argument, not padded"]}, sam_rho=0.05, m=4)
    launch(config, tmp_path / "a", place, Control())
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    launch(config, tmp_path / "b", place, Control())
    assert left_by(Run(tmp_path / "a"))[0] == left_by(Run(tmp_path / "b"))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "fc"},
            "loss must be mse or one of your own for the targets of table, which are numbers, got ce",
        ),
        ({"data": "photos", "loss": "mse"}, "loss must be one of classes for the targets of photos"),
        (
            {"loss": "mse", "p_label_noise": 0.1},
            "p_label_noise must be left out for targets that are numbers",
        ),
        (
            {"loss": "mse", "sgd_p_label_noise": 0.1},
            "sgd_p_label_noise must be left out for table, whose targets are",
        ),
        (
            {"loss": "mse", "augment": ("flip",)},
            "augment must be left out for table, which holds features and no images",
        ),
        ({"loss": "mse", "export_images": True}, "export_images must be left out for table"),
        (
            {"loss": "mse", "model": "cnn"},
            "cnn needs images of channels, height and width, got inputs of shape 3",
        ),
        ({"data": "photos", "model": "vgg16"}, "vgg16 needs images of at least 32x32, got 6x5"),
        (
            {"data": "own_code:text"},
            "model must be one of your own, package.module:function, for tokens, got fc",
        ),
        ({"data": "own_code:text", "normalize": True}, "normalize must be left out for tokens"),
        (
            {"data": "own_code:text", "model": "own_code:Deaf"},
            "model own_code:Deaf must take a mask beside the tokens",
        ),
        (
            {"data": "photos", "model": "own_code:Reader"},
            "must take its arguments, num_classes: missing .*'vocab_size'",
        ),
        (
            {"model": "own_code:net", "loss": "mse", "model_arg": ("input_shape=(7,)",)},
            r"must take the inputs of table, 3 of float32 each, but it raised RuntimeError.*: mat1 and mat2",
        ),
        (
            {"data": "photos", "model": "own_code:net", "sam_rho": 0.1, "m": 1},
            r"in groups of 1 to train on, .* it raised ValueError.*: Expected more than 1 value per channel",
        ),
        ({"data": "photos", "model": "own_code:nothing"}, "must return a torch.nn.Module, got int"),
        ({"data": "photos", "model": "torch.nn:Flatten"}, "must return a network with parameters, got none"),
        (
            {"data": "photos", "model": "own_code:net", "model_arg": ("num_classes=2",)},
            "must return 3 logits for each",
        ),
        (
            {"data": "photos", "model": "own_code:net", "model_arg": ("depth=2",)},
            "must take its arguments, .*depth",
        ),
        (
            {"model": "own_code:Greedy", "loss": "mse"},
            "model own_code:Greedy must leave the inputs .* as they are",
        ),
        (
            {"model": "fc", "loss": "own_code:summed"},
            "loss own_code:summed must return the mean .*, got their sum",
        ),
        ({"model": "fc", "loss": "own_code:broadcast"}, "raised UserWarning.*: Using a target size"),
        ({"model": "own_code:net", "loss": "own_code:unread"}, "must depend on the outputs that it is given"),
        ({"model": "own_code:net", "loss": "own_code:wrong_shape"}, "must return the mean over the examples"),
        (
            {"model": "own_code:net", "loss": "own_code:failing"},
            "must take outputs and targets, .* raised ValueError at own_code",
        ),
        (
            {"model": "own_code:net", "loss": "own_code:none"},
            "loss must name a function, but own_code has no function",
        ),
        (
            {"model": "fc", "loss": "mse", "batch_size": 100},
            "batch_size must be at most the number of training examples",
        ),
    ],
)
def test_what_does_not_go_together_is_one_sentence_and_nothing_is_written(
    options: dict[str, Any], message: str, place: Place, tmp_path: Path
) -> None:
    config = TrainConfig(**{"data": "table.npz", "model": "fc", **SMALL, **options})
    with pytest.raises(InputError, match=message) as error:
        launch(config, tmp_path / "x", place, Control())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "x", "dataset": "mnist"}, "dataset needs data to be left out"),
        ({"image_size": 8}, "image_size needs data of your own"),
        ({"augment": ("crop",)}, "augment needs data of your own"),
        ({"data": "x", "no_data_augm": True}, "no_data_augm needs data to be left out"),
        ({"data": "x", "p_label_noise": 0.1, "noise_type": "asym"}, "noise_type needs data to be left out"),
        ({"model_arg": ("a=1",)}, "model_arg needs a model of your own"),
        ({"model": "a:b", "model_width": 4}, "model_width needs one of lowland's models"),
        ({"attack": "pgd", "eps": 1.0, "normalize": True}, "attack needs normalize to be off"),
        ({"data": "x", "channels": 2}, "channels must be 1, 3 or 4, got 2"),
        ({"data": "x", "image_size": 0}, "image_size must be positive, got 0"),
        ({"data": "x", "augment": ("crop", "crop")}, "augment must name each way once"),
        ({"model": "net"}, "model must be one of .*, or your own as package.module:function, got 'net'"),
        ({"loss": "mae"}, "loss must be one of .*, or your own as package.module:function, got 'mae'"),
        ({"model": "a:b", "model_arg": ("x",)}, "model_arg must be name=value, got 'x'"),
    ],
)
def test_options_that_nothing_would_read_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        TrainConfig(**options)


def test_a_config_without_anything_of_ones_own_is_what_it_was() -> None:
    """So that a run that was made before keeps its name, and is found by it."""
    values = TrainConfig(model="fc", sam_rho=0.1, m=16).to_dict()
    assert not {"data", "model_arg", "normalize", "augment", "image_size"} & values.keys()
    assert run_name(TrainConfig(model="fc", sam_rho=0.1, m=16)) == "digits-fc-sam0.1-m16-seed0-67dffba96b"


def test_a_run_is_called_by_its_data_and_its_network() -> None:
    config = TrainConfig(data="my photos", model="mine.nets:net", model_arg=("width=3",))
    assert run_name(config).startswith("my-photos-mine.nets.net-erm-seed0-")
    assert run_name(config) != run_name(replace(config, model_arg=("width=4",)))


def test_other_data_under_the_same_name_are_refused(place: Place, tmp_path: Path) -> None:
    config = TrainConfig(**{**SMALL, **KINDS["table"]})
    launch(config, tmp_path / "x", place, Control())
    write_features(tmp_path / "table.npz", seed=5)
    (tmp_path / "x" / "summary.json").unlink()
    with pytest.raises(
        InputError, match=r"table\.npz must be the data that .*x was trained on, of SHA-256 .* got others"
    ):
        launch(config, tmp_path / "x", place, Control())
    with pytest.raises(InputError, match="must be the data that"):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))


def test_a_run_keeps_the_source_of_its_functions_and_says_when_they_have_changed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = "from torch.nn import *\ndef net(num_classes):\n    return Sequential(Flatten(), Linear(90, 3))\n"
    (tmp_path / "shapes.py").write_text(text)
    config = TrainConfig(**{**SMALL, "data": "photos", "model": "shapes:net"})
    launch(config, tmp_path / "x", place, Control())
    assert (tmp_path / "x" / "sources" / "shapes.py").read_text() == text
    with caplog.at_level(logging.WARNING):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
        assert not caplog.records
        (tmp_path / "shapes.py").write_text(text + "# changed\n")
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
    assert "shapes has changed since" in caplog.text
    sys.modules.pop("shapes")
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    with pytest.raises(
        InputError, match=r"model must name a module that can be imported from /, got shapes:net"
    ):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))


@pytest.mark.parametrize("name", ["photos", "table", "a mean over the group", "text"])
def test_a_run_of_ones_own_is_measured_and_seen(name: str, place: Place, tmp_path: Path) -> None:
    config = TrainConfig(**{**SMALL, **KINDS[name]})
    launch(config, tmp_path / "x", place, Control())
    subject = load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
    of_features = ("active-relus", "feature-rank", "knn-error")
    every = tuple(name for name in get_args(Measure) if name not in of_features)
    flatness = FlatnessConfig(
        measure=every, rho=(0.05,), m=(1, 8), n_eval=16, steps=3, samples=4, products=10, k=1
    )
    rows = measures(subject, flatness).rows
    assert {row["measure"] for row in rows} >= {"worst case", "average case", "trace"}
    assert all(row["value"] is not None for row in rows)
    assert any("error_rise" in row and row["error_rise"] is not None for row in rows) == (
        name in ("photos", "text")
    )
    for view in ("plane", "sam"):
        seen = scenery({"x": subject}, SceneryConfig(view=view, points=3, n_eval=16))
        point = next(iter(seen.paths.values()))[0]
        assert ("train_error" in point) == (name in ("photos", "text"))
        assert "test_loss" in point


def test_the_sharpness_of_a_regression_is_that_of_its_quadratic(place: Place, tmp_path: Path) -> None:
    """The loss of a linear network is quadratic: its Hessian is twice the second moments of the inputs."""
    config = TrainConfig(**{**SMALL, "data": "table.npz", "model": "linear", "loss": "mse"})
    launch(config, tmp_path / "x", place, Control())
    subject = load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu", dtype="float64"))
    x = subject.train.inputs.double().numpy()
    eigenvalues = np.linalg.eigvalsh(2 * x.T @ x / len(x))
    flatness = FlatnessConfig(measure=("eigenvalues", "trace"), k=1, products=30)
    rows = {row["measure"]: row["value"] for row in measures(subject, flatness).rows}
    assert rows["largest eigenvalue"] == pytest.approx(eigenvalues[-1], rel=1e-6)
    assert rows["trace"] == pytest.approx(eigenvalues.sum(), rel=1e-6)


def test_the_mask_is_not_handed_to_what_calls_itself_something_else(place: Place, tmp_path: Path) -> None:
    config = TrainConfig(**{**SMALL, "data": "own_code:drawn", "model": "own_code:Odd"})
    launch(config, tmp_path / "x", place, Control())
    even = torch.arange(48).reshape(24, 2)
    np.savez(tmp_path / "even.npz", x=even.numpy(), y=np.arange(24) % 2)
    launch(replace(config, data="even.npz"), tmp_path / "y", place, Control())


def test_what_the_batched_engine_cannot_run_is_a_sentence(place: Place, tmp_path: Path) -> None:
    options = {"data": "photos", "model": "fc", "loss": "own_code:drawing", "sam_rho": 0.1, "m": 2}
    config = TrainConfig(**{**SMALL, **options}, engine="batched")
    with pytest.raises(InputError, match="engine='batched' must be able to run every part"):
        launch(config, tmp_path / "x", place, Control())


def test_numbers_are_kept_apart_by_what_was_measured(place: Place, tmp_path: Path) -> None:
    launch(TrainConfig(**{**SMALL, **KINDS["photos"]}), tmp_path / "x", place, Control())
    photos = str(tmp_path / "photos")
    options: tuple[dict[str, str], ...] = ({}, {"data": photos})
    subjects = [load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu", **each)) for each in options]
    assert subjects[0].made_of["data_hash"] != subjects[1].made_of["data_hash"]
    assert subjects[0].made_of["code_hash"] == subjects[1].made_of["code_hash"]


def sorted_photos(folder: Path, n: int = 60) -> dict[str, np.ndarray]:
    """Images as they lie in folders, one class after the other, in two parts."""
    rng = np.random.default_rng(0)
    parts = {"x": "y", "x_test": "y_test"}
    images = {x: rng.integers(0, 256, (n, 3, 6, 5)).astype(np.uint8) for x in parts}
    arrays = images | {y: np.arange(n) // (n // 3) for y in parts.values()}
    np.savez(folder / "sorted.npz", **arrays)  # type: ignore[arg-type]
    return arrays


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("form", ["folder", "npz", "function"])
def test_the_first_examples_that_are_measured_are_a_sample_of_all_classes(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = sorted_photos(tmp_path)
    monkeypatch.setattr("own_code.in_order", lambda: arrays, raising=False)
    data = {"folder": "photos", "npz": "sorted.npz", "function": "own_code:in_order"}[form]
    monkeypatch.chdir(tmp_path)
    options = SubjectOptions(device="cpu", data=data)
    subject, again = (load_subject("own_code:for_photos", options) for _ in range(2))
    for name in ("train",) if form == "folder" else ("train", "test"):
        part = subject.split(name)
        assert set(part.head(16).targets.tolist()) == {0, 1, 2}
        assert torch.equal(part.indices, again.split(name).indices)
        assert sorted(part.indices.tolist()) == list(range(60))
        if form != "folder":
            stored = torch.from_numpy(arrays["x" if name == "train" else "x_test"])
            assert torch.equal(part.inputs, stored[part.indices])


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("data", ["photos", "sorted.npz"])
def test_every_part_of_a_run_on_sorted_data_is_mixed(data: str, tmp_path: Path) -> None:
    sorted_photos(tmp_path)
    parts = divided_own_data(read_own_data(TrainConfig(data=data), directory=tmp_path)).parts
    assert all((part.targets.diff() < 0).sum() >= 1 for part in parts.values())


@pytest.mark.usefixtures("place")
def test_numbers_of_examples_in_another_order_are_not_taken_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = SubjectOptions(device="cpu", data="photos")
    mixed = load_subject("own_code:for_photos", options)
    monkeypatch.setattr("lowland.deep.data.divided._mixed", lambda part, _: part)
    sorted_ = load_subject("own_code:for_photos", options)
    assert mixed.made_of["code_hash"] == sorted_.made_of["code_hash"]
    assert mixed.made_of["data_hash"] != sorted_.made_of["data_hash"]


def test_classes_of_other_data_keep_the_numbers_that_the_network_knows(place: Place, tmp_path: Path) -> None:
    launch(TrainConfig(**{**SMALL, **KINDS["photos"]}), tmp_path / "x", place, Control())
    write_images(tmp_path / "two", 4)
    for path in (tmp_path / "two" / "birds").iterdir():
        path.unlink()
    (tmp_path / "two" / "birds").rmdir()
    two = load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu", data=str(tmp_path / "two")))
    assert sorted(two.train.targets.tolist()) == [1] * 4 + [2] * 4  # cats and dogs of birds, cats, dogs
    (tmp_path / "two" / "cats").rename(tmp_path / "two" / "cows")
    with pytest.raises(
        InputError, match="must be among those that the network knows, birds, cats, dogs, got cows"
    ):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu", data=str(tmp_path / "two")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "own_code:text"}, "must hold images with classes, .* got tokens with classes"),
        ({"data": "table.npz"}, "must hold images with classes, .* got features with numbers"),
        ({"loss": "mse"}, "loss mse must be left out for targets that are classes"),
        (
            {"loss": "own_code:failing"},
            "loss own_code:failing must take outputs and targets, .* raised ValueError",
        ),
        ({"image_size": 4}, "image_size must be left out without --data"),
    ],
)
def test_what_a_run_cannot_be_measured_by_is_a_sentence(
    options: dict[str, Any], message: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(TrainConfig(**{**SMALL, **KINDS["photos"]}), tmp_path / "x", place, Control())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu", **options))


def test_frozen_parameters_are_not_measured(place: Place, tmp_path: Path) -> None:
    config = TrainConfig(**{**SMALL, "data": "photos", "model": "own_code:frozen"})
    launch(config, tmp_path / "x", place, Control())
    subject = load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
    assert list(pick_parameters(subject.model, None)) == ["2.weight", "2.bias"]


def test_networks_are_tried_on_data_as_they_are_padded_for_them() -> None:
    """A sweep may hold one of ours, for which digits are padded, beside one's own, for which they are not."""
    own = TrainConfig(model="own_code:net", model_arg=("input_shape=(1, 8, 8)",), epochs=1, frac_train=0.1)
    ours = TrainConfig(model="cnn", model_width=4, epochs=1, frac_train=0.1)
    require_startable([ours, own], None)
    require_startable([own, ours], None)


def test_padding_is_not_measured_as_tokens(place: Place, tmp_path: Path) -> None:
    np.savez(tmp_path / "even.npz", x=np.arange(60).reshape(30, 2) % 9, y=np.arange(30) % 2)
    launch(
        TrainConfig(**{**SMALL, "data": "even.npz", "model": "own_code:Deaf"}),
        tmp_path / "x",
        place,
        Control(),
    )
    with pytest.raises(InputError, match="x must take a mask beside the tokens of own_code:text"):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu", data="own_code:text"))


def test_other_data_are_scaled_as_those_of_training_were(place: Place, tmp_path: Path) -> None:
    config = TrainConfig(**{**SMALL, **KINDS["table"]})
    launch(config, tmp_path / "x", place, Control())
    own = load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
    other = load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu", data=str(tmp_path / "table.npz")))
    rows = other.train.indices.argsort()[own.test.indices]
    torch.testing.assert_close(other.train.inputs[rows], own.test.inputs)
    assert (len(other.train), len(other.test)) == (60, 0)


@pytest.mark.parametrize(
    ("flatness", "message"),
    [
        ({"logit_norm": True}, "logit_norm must be left out for x, whose loss mse is none of logits"),
        ({"random_targets": True}, "random_targets must be left out for x"),
        ({"measure": ("knn-error",), "feature_layer": "_model"}, "measure knn-error must be left out for x"),
    ],
)
def test_measures_of_classes_are_refused_for_numbers(
    flatness: dict[str, Any], message: str, place: Place, tmp_path: Path
) -> None:
    config = TrainConfig(**{**SMALL, **KINDS["table"], "epochs": 1})
    launch(config, tmp_path / "x", place, Control())
    subject = load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
    with pytest.raises(InputError, match=message):
        measures(subject, FlatnessConfig(**flatness))
