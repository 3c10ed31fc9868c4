"""The commands with data, networks and losses of somebody's own, in a folder with a space in its name."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MINE = """
from torch import nn
import torch.nn.functional as F

def net(num_classes, input_shape, width=4):
    channels = input_shape[0]
    layers = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def mlp(num_classes, input_shape):
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.Tanh(), nn.Linear(8, num_classes))

def loss(outputs, targets):
    return F.smooth_l1_loss(outputs[:, 0], targets)
"""
FAST = ("--epochs", "2", "--batch_size", "8", "--lr_max", "0.05", "--threads", "1", "--device", "cpu")
PHOTOS = ("train", "--data", "my photos", "--image_size", "8", "--model", "mine:net", *FAST)
TABLE = ("train", "--data", "table.npz", "--model", "mine:mlp", *FAST)


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A user's folder, where the commands run."""
    home = tmp_path / "at home"
    home.mkdir()
    (home / "mine.py").write_text(MINE)
    rng = np.random.default_rng(0)
    for colour, name in enumerate(("birds", "cats", "dogs")):
        (home / "my photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 100, (*rng.integers(8, 15, 2), 3))
            pixels[..., colour] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(home / "my photos" / name / f"{i}.png")
    x = rng.normal(size=(60, 3)).astype(np.float32)
    np.savez(home / "table.npz", x=x, y=x[:, 0] * 2)
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(home)
    yield home
    sys.modules.pop("mine", None)


@pytest.fixture
def home(run, at_home, monkeypatch):
    """Runs commands there."""
    monkeypatch.chdir(at_home)
    return run


def test_photos_are_trained_on_compared_measured_and_drawn(home) -> None:
    code, out, err = home(*PHOTOS, "--out", "erm")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "data: my-photos, image folder: 36 images of 3x8x8"
    assert lines[2] == "  targets: 3 classes: birds: 12, cats: 12, dogs: 12"
    assert "training in erm" in lines
    assert home(*PHOTOS, "--out", "sam", "--sam_rho", "0.05", "--m", "2")[0] == 0
    code, out, _ = home("runs", "compare", "erm", "sam")
    assert code == 0
    code, out, err = home(
        "sharpness", "erm", "sam", "--rho", "0.05", "--m", "4", "--n_eval", "8", "--steps", "2"
    )
    assert (code, err) == (0, "")
    assert "worst case" in out
    code, _, err = home("landscape", "erm", "sam", "--points", "3", "--n_eval", "8", "--out", "seen")
    assert (code, err) == (0, "")
    assert Path("seen/line.png").is_file()


def test_a_run_that_was_killed_goes_on_to_the_same_end(home, at_home) -> None:
    words = [word if word != "2" else "6" for word in PHOTOS] + ["--sam_rho", "0.05", "--m", "2", "--out"]
    command = [sys.executable, "-m", "lowland", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "killed"], cwd=at_home, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        rows = at_home / "killed" / "metrics.jsonl"
        while time.monotonic() < deadline and not (rows.exists() and len(rows.read_text().splitlines()) > 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert home("train", "--resume", "killed")[0] == 0
    assert home(*words, "whole")[0] == 0
    killed, whole = (at_home / name / "model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


def test_numbers_are_predicted_by_ones_own_loss_and_swept(home) -> None:
    code, out, err = home(*TABLE, "--loss", "mine:loss", "--out", "r")
    assert (code, err) == (0, "")
    assert "a number each (regression)" in out
    summary = json.loads(Path("r/summary.json").read_text())
    assert "test_loss" in summary["best"]
    assert not any("error" in name for name in summary["best"])
    assert home("sharpness", "r", "--n_eval", "8", "--m", "4", "--steps", "2")[0] == 0
    over = ("--loss", "mse", "--sam_rho", "0", "0.05", "--m", "1")
    swept = ("sweep", *TABLE[1:], *over)
    code, out, _ = home("sweep", *TABLE[1:-4], *over, "--dry-run")
    assert "core-minutes, about: not known of what is your own" in out
    code, out, err = home(*swept, "--engine", "here")
    assert (code, err) == (0, "")
    assert "test_loss, last epoch" in out
    assert "validation loss" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("0 ")] == [["0", "(ERM)"]]
    lines = out.splitlines()
    assert lines[0].startswith("data: table, ")
    assert sum(line.startswith("data: ") for line in lines) == 1, "once for all runs"
    assert "  split: 43 train" in out
    assert "data: " not in home(*swept, "--engine", "here")[1], "nothing is read where nothing runs"


def test_a_sweep_of_parts_of_the_data_says_that_the_split_is_of_one_run(home) -> None:
    swept = ("sweep", *TABLE[1:], "--loss", "mse", "--frac_train", "0.5", "1", "--engine", "here")
    assert "  this is of one run: they differ in frac_train\n" in home(*swept)[1]


def test_numbers_have_a_loss_and_no_errors_beside_their_sharpness(home) -> None:
    assert home(*TABLE, "--loss", "mine:loss", "--out", "numbers")[0] == 0
    code, out, err = home("sharpness", "numbers", "--rho", "0.1", "--m", "4", "--steps", "2")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.strip()]
    assert rows[1][0] == "loss"
    last = json.loads(Path("numbers/summary.json").read_text())["last"]
    assert float(rows[1][1]) == pytest.approx(last["train_loss"], rel=1e-3)
    assert "error" not in out


def test_a_sweep_of_what_does_not_go_together_is_told_before_anything_runs(home) -> None:
    code, _, err = home("sweep", *TABLE[1:], "--loss", "mse", "--model_arg", "depth=3", "--seed", "1", "2")
    assert code == 2
    assert "model mine:mlp must take its arguments" in err
    assert not Path("runs/sweeps/runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--data", "my photos", "--model", "mine:net"), "must be of one size, got"),
        (("--data", "my photos", "--image_size", "8", "--model", "mine:no"), "mine has no function 'no'"),
        (
            ("--data", "my photos", "--image_size", "8", "--model", "mine:mlp"),
            "must take the inputs of my-photos",
        ),
        (("--data", "nowhere", "--model", "fc"), "data must be a folder of images or Parquet files"),
        (("--data", "table.npz", "--model", "fc"), "loss must be mse or one of your own"),
        (("--data", "mine.py", "--model", "fc"), "data must be a folder of images or Parquet files"),
        (("--data", "hf://x", "--model", "fc"), "must be hf://owner/name@revision/folder, got hf://x"),
        (("--data", "table.npz", "--dataset", "mnist"), "dataset needs data to be left out"),
        (("--model", "mine:net", "--model_arg", "width"), "model_arg must be name=value, got 'width'"),
        (("--model", "fc", "--loss", "mine:net"), "loss mine:net must take outputs and targets"),
        (("--model", "fc", "--trust", "timm"), "trust must be left out without resume"),
        (
            ("--data", "table.npz", "--data_dir", ".", "--loss", "mse", "--model", "fc"),
            "data_dir must be left out",
        ),
    ],
)
def test_wrong_input_is_one_sentence(words, sentence, home) -> None:
    code, _, err = home("train", *words, *FAST)
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_run_of_an_installed_package_needs_a_word_to_go_on(home) -> None:
    words = ("train", "--model", "torch.nn:Linear", "--model_arg", "in_features=8", "out_features=10", *FAST)
    code, _, err = home(*words, "--frac_train", "0.05", "--out", "x")
    assert code == 2  # digits are images, which a linear layer takes row by row
    assert "must return 10 logits for each example" in err
    Path("flat.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    x = np.random.rand(60, 8).astype('float32')\n"
        "    return x, (x[:, 0] > .5).astype(int)\n"
    )
    words = (*words, "--data", "flat:data")
    assert home(*words, "--out", "y")[0] == 0
    Path("y/summary.json").unlink()
    code, _, err = home("train", "--resume", "y")
    assert code == 2
    assert "only with --trust torch, got no such" in err
    assert home("train", "--resume", "y", "--trust", "torch", "timm")[0] == 2
    assert home("train", "--resume", "y", "--trust", "torch")[0] == 0
    sys.modules.pop("flat")
