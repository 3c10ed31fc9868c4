"""A run from its config: name, place, directory, files."""

import dataclasses
import fcntl
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lowland.deep import Control, Interrupted, Place, TrainConfig, launch, load_data, run_name
from lowland.errors import InputError
from lowland.runs import Run, config_hash

from .room import small

HERE = Place(device="cpu")


def quick(**options: Any) -> TrainConfig:
    return small(**{"frac_train": 0.1, "batch_size": 32, "epochs": 1, "model": "linear", **options})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "digits-fc-erm-seed0"),
        ({"p_label_noise": 0.6, "seed": 3}, "digits-fc-noise0.6-erm-seed3"),
        ({"sam_rho": 0.05}, "digits-fc-sam0.05-seed0"),
        ({"sam_rho": 0.05, "m": 2}, "digits-fc-sam0.05-m2-seed0"),
        ({"sam_rho": 0.05, "acc_steps": 2}, "digits-fc-sam0.05-m4-seed0"),
        ({"sam_lr_mult": 2.0}, "digits-fc-sam2lr-seed0"),
        ({"sam_rho": 0.05, "sam_no_grad_norm": True}, "digits-fc-usam0.05-seed0"),
    ],
)
def test_a_runs_name_says_what_it_is_and_ends_in_the_configs_hash(options: dict[str, Any], name: str) -> None:
    config = small(**options)
    assert run_name(config) == f"{name}-{config_hash(config.to_dict())}"


def test_configs_that_differ_at_all_have_different_names() -> None:
    configs = [small(), small(l2_reg=0.1), small(lr_max=0.2), small(optimizer_options=("momentum=0.8",))]
    assert len({run_name(config) for config in configs}) == 4


def test_a_run_leaves_its_config_environment_split_metrics_checkpoint_weights_and_summary(
    tmp_path: Path,
) -> None:
    config = quick()
    rows = launch(config, tmp_path / "new" / "x", HERE, Control())
    path = tmp_path / "new" / "x"
    assert {p.name for p in path.iterdir()} >= {
        "config.json",
        "env.json",
        "split.safetensors",
        "metrics.jsonl",
        "checkpoint",
        "model.safetensors",
        "summary.json",
    }
    assert TrainConfig.from_dict(Run.open(path).config) == config
    assert Run.open(path).rows() == rows
    assert json.loads((path / "env.json").read_text())["place"]["device"] == "cpu"
    assert not [p for p in path.rglob("*") if p.name.endswith(".tmp")]


def test_the_split_file_holds_the_rows_of_the_original_set(tmp_path: Path) -> None:
    config = quick()
    launch(config, tmp_path / "x", HERE, Control())
    data, found = load_data(config), load_file(tmp_path / "x" / "split.safetensors")
    assert found.keys() == {"train", "validation"}
    assert torch.equal(found["train"], data.train.indices)
    assert torch.equal(found["validation"], data.validation.indices)
    assert not set(found["train"].tolist()) & set(found["validation"].tolist())


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = quick(save_model_each_k_epochs=1, export_images=True)
    rows = launch(config, None, HERE, Control())
    assert list(tmp_path.iterdir()) == []
    kept = launch(config, tmp_path / "x", HERE, Control())
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in kept]


def test_the_picture_shows_the_training_images(tmp_path: Path) -> None:
    launch(quick(export_images=True), tmp_path / "x", HERE, Control())
    with Image.open(tmp_path / "x" / "images.png") as picture:
        picture.load()
        assert picture.size == (8 * 9, 8 * 9)  # 64 images of 8x8 pixels with a line between


def test_images_are_padded_for_convolutional_models_only() -> None:
    assert load_data(quick()).input_shape == (1, 8, 8)
    assert load_data(quick(model="cnn")).input_shape == (1, 32, 32)


def test_a_directory_with_a_run_of_another_config_is_refused_and_left_alone(tmp_path: Path) -> None:
    launch(quick(), tmp_path / "x", HERE, Control())
    before = {p: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()}
    message = "holds a run of another config (lr_max is 0.1 there, 0.2 here)"
    with pytest.raises(InputError, match=re.escape(message)):
        launch(quick(lr_max=0.2), tmp_path / "x", HERE, Control())
    assert {p: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("ended", [True, False])
def test_an_edited_config_is_refused_naming_the_options_and_everything_is_left_alone(
    tmp_path: Path, ended: bool
) -> None:
    path, config = tmp_path / "x", quick(epochs=2)
    stop = iter([False, True])
    with pytest.raises(Interrupted):
        launch(config, path, HERE, Control(should_stop=lambda: next(stop)))
    if ended:
        launch(config, path, HERE, Control())
    edited = dataclasses.replace(config, seed=5, lr_max=0.3, dataset="mnist")
    (path / "config.json").write_text(json.dumps(edited.to_dict()))
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    options = "dataset ('digits' there, 'mnist' here), lr_max (0.1 there, 0.3 here), seed (0 there, 5 here)."
    with pytest.raises(InputError, match=re.escape(f"it is of another {options}")):
        launch(edited, path, HERE, Control())  # there is no mnist here: the config comes before the data
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_a_run_may_go_on_with_other_threads(tmp_path: Path) -> None:
    path, config = tmp_path / "x", quick(epochs=2)
    stop = iter([False, True])
    with pytest.raises(Interrupted):
        launch(config, path, HERE, Control(should_stop=lambda: next(stop)))
    assert launch(config, path, Place("cpu", threads=2), Control())[-1]["epoch"] == 2


def test_a_run_named_by_its_name_is_found_beside_and_the_two_may_move_together(tmp_path: Path) -> None:
    old, moved = tmp_path / "old", tmp_path / "moved"
    launch(quick(), old / "first", HERE, Control())
    config = quick(model_path="first", epochs=2, seed=1)
    with pytest.raises(Interrupted):
        launch(config, old / "second", HERE, Control(should_stop=lambda: True))
    shutil.copytree(old, moved)
    (moved / "second" / "checkpoint" / "state.safetensors").unlink()  # killed before the first one
    for store in (old, moved):
        launch(config, store / "second", HERE, Control())
    found = [(store / "second" / "model.safetensors").read_bytes() for store in (old, moved)]
    assert found[0] == found[1]
    assert str(tmp_path) not in (moved / "second" / "config.json").read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("env.json", "[]", "must hold a JSON object, got list"),
        ("env.json", '{"place": {"threads": 100000}}', "threads must be at most 1024, got 100000"),
        ("env.json", '{"place": {"device": null}}', "place.device of .* must be text, got None"),
        ("config.json", '{"n_layers": 1000000}', "n_layers must be at most 1000, got 1000000"),
        ("config.json", '{"optimizer_options": "momentum=0"}', "optimizer_options must be a list, got"),
        ("config.json", '{"activation": 3}', "activation must be text, got 3"),
    ],
)
def test_a_file_of_a_run_with_something_else_in_it_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    run = Run.create(tmp_path / "x", quick().to_dict(), {})
    (run.path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        _ = Place.of(run), TrainConfig.from_dict(run.config)


def test_a_directory_with_other_files_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InputError, match=f"^{path} must be a new or empty directory"):
            launch(quick(), path, HERE, Control())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_run_is_continued_by_launching_it_again(tmp_path: Path) -> None:
    launch(quick(epochs=2), tmp_path / "whole", HERE, Control())
    with pytest.raises(Interrupted):
        launch(quick(epochs=2), tmp_path / "x", HERE, Control(should_stop=lambda: True))
    assert Run.open(tmp_path / "x").summary is None
    launch(quick(epochs=2), tmp_path / "x", HERE, Control())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "x")]
    assert files[0] == files[1]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    rows = launch(quick(), tmp_path / "x", HERE, Control())
    model, summary = ((tmp_path / "x" / n).read_bytes() for n in ("model.safetensors", "summary.json"))
    assert launch(quick(), tmp_path / "x", HERE, Control()) == rows
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == model
    assert (tmp_path / "x" / "summary.json").read_bytes() == summary


def test_a_run_that_another_process_trains_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lowland.runs.directory._PATIENCE", 0.1)
    with pytest.raises(Interrupted):
        launch(quick(), tmp_path / "x", HERE, Control(should_stop=lambda: True))
    with (tmp_path / "x" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is training in it"):
            launch(quick(), tmp_path / "x", HERE, Control())
    launch(quick(), tmp_path / "x", HERE, Control())


def test_a_process_that_is_about_to_leave_a_run_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    run = Run.create(tmp_path / "x", {}, {})
    with (run.path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(held, fcntl.LOCK_UN))
        with run.locked():
            pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "x", {}, {})
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    with run.locked():
        pass


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "tpu:0", "xla", "meta"])
def test_a_device_that_is_not_here_is_refused_in_one_line(device: str, tmp_path: Path) -> None:
    message = rf"^device must be one of this machine's, got '{device}': [^\n]*\.$"
    with pytest.raises(InputError, match=message):
        launch(quick(), tmp_path / "x", Place(device=device), Control())
    assert not (tmp_path / "x").exists()


def test_a_place_is_remembered_with_the_run(tmp_path: Path) -> None:
    place = Place(device="cpu", data_dir=tmp_path, threads=1)
    launch(quick(), tmp_path / "x", place, Control())
    assert Place.of(Run.open(tmp_path / "x")) == dataclasses.replace(place, directory=Path.cwd())
    assert Place.of(Run.create(tmp_path / "y", {}, {})) == Place()


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 9999},
        {"optimizer_options": ("bogus=1",)},
        {"model_path": "/nowhere"},
        {"activation": "softminus"},
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing_in_the_way_of_the_corrected_one(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        launch(quick(model="fc", **options), tmp_path / "x", HERE, Control())
    launch(quick(model="fc"), tmp_path / "x", HERE, Control())


def test_a_missing_data_folder_is_refused_before_a_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        launch(quick(dataset="cifar10c"), tmp_path / "x", Place("cpu", tmp_path / "none"), Control())
    assert not (tmp_path / "x").exists()
