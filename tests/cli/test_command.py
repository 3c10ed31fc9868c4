"""The command line as a user meets it: sentences, exit codes, files."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lowland import __version__
from lowland.deep import tensors

TINY = ("--model=fc", "--model_width=8", "--epochs=2", "--quiet", "--device=cpu", "--threads=1")


def test_train_leaves_a_whole_run(run) -> None:
    code, out, err = run("train", *TINY, "--sam_rho=0.1", "--m", "16", "--p-label-noise=0.4")
    assert (code, err) == (0, "")
    (path,) = Path("runs").iterdir()
    assert path.name.startswith("digits-fc-noise0.4-sam0.1-m16-seed0-")
    assert str(path / "curves.png") in out
    assert sorted(file.name for file in path.iterdir() if not file.name.startswith(".")) == [
        *("checkpoint", "config.json", "curves.png", "env.json", "metrics.jsonl"),
        *("model.safetensors", "split.safetensors", "summary.json"),
    ]
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert {"train_objective", "train_error_noisy", "swa_test_error", "sharpness_rho"} <= rows[-1].keys()
    assert json.loads((path / "config.json").read_text())["m"] == 16
    with Image.open(path / "curves.png") as picture:
        assert picture.width > 800


def test_the_command_of_the_originals_readme_parses_word_for_word(run) -> None:
    words = (
        "--dataset=cifar10 --sam_rho=0.1 --sam_iters=1 --lr_max=0.1 --lr_schedule=piecewise "
        "--model=resnet18_gn --model_width=64 --epochs=200 --batch_size=128 "
        "--l2_reg=0.0005 --data_dir=nowhere"
    )
    code, _, err = run("train", *words.split())
    assert code == 2
    assert "nowhere" in err
    assert not Path("runs").exists()


def test_the_same_command_again_says_that_the_run_is_finished(run) -> None:
    run("train", *TINY, "--out", "a")
    before = (Path("a") / "model.safetensors").read_bytes()
    for words in (("train", *TINY, "--out", "a"), ("train", "--resume", "a")):
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        assert out.strip() == "a is finished already; nothing to do."
    assert (Path("a") / "model.safetensors").read_bytes() == before


def test_a_picture_that_a_killed_run_never_got_is_drawn(run) -> None:
    run("train", *TINY, "--out", "a")
    drawn = (Path("a") / "curves.png").read_bytes()
    (Path("a") / "curves.png").unlink()
    assert run("train", "--resume", "a")[0] == 0
    assert (Path("a") / "curves.png").read_bytes() == drawn


def test_an_edited_config_is_refused_also_when_the_run_has_ended(run) -> None:
    run("train", *TINY, "--out", "a")
    stored = json.loads((Path("a") / "config.json").read_text())
    (Path("a") / "config.json").write_text(json.dumps(stored | {"seed": 7, "lr_max": 0.2}))
    code, out, err = run("train", "--resume", "a")
    assert (code, out) == (2, "")
    assert "lr_max (0.1 there, 0.2 here), seed (0 there, 7 here)" in err


def test_another_config_does_not_touch_a_run(run) -> None:
    run("train", *TINY, "--out", "a")
    before = {file.name: file.read_bytes() for file in Path("a").iterdir() if file.is_file()}
    code, _, err = run("train", *TINY, "--out", "a", "--seed", "1")
    assert code == 2
    assert err == "lowland: a holds a run of another config (seed is 0 there, 1 here); give another --out.\n"
    assert {file.name: file.read_bytes() for file in Path("a").iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sam_roh=1",), "every option must be one that --help lists, got --sam_roh; nearest: --sam_rho"),
        (("--model", "resnet81"), "model must be one of .*, got 'resnet81'; nearest: resnet18"),
        (("--dataset", "cifar11"), "dataset must be one of .*, got 'cifar11'; nearest: cifar10"),
        (
            ("--lr_schedule", "piecewise_5"),
            "--lr_schedule must be one of .*, got 'piecewise_5'; nearest: ",
        ),
        (("--sam_rho", "-1"), r"sam_rho must be non-negative, got -1\.0\."),
        (("--sam_rho=nan",), r"sam_rho must be a finite number, got nan\."),
        (("--frac_train=1.5",), r"frac_train must be between 0 and 1, got 1\.5\."),
        (("--epochs=ten",), r"--epochs must be a whole number, got 'ten'\."),
        (("--lr_max=fast",), r"--lr_max must be a number, got 'fast'\."),
        (("--epochs",), r"--epochs must be given a value, got none\."),
        (("--quiet=yes",), r"--quiet must be given without a value, got 'yes'\."),
        (("digits",), r"only options are expected here, got 'digits'\."),
        (("--m=4", "--acc_steps=2"), r"either m or acc_steps may be given, got m=4 and acc_steps=2\."),
        (("--m=129",), r"m must be at most the batch size, 128, got 129\."),
        (("--acc_steps=3",), r"acc_steps must divide the batch size, 128, got 3\."),
        (("--device=abacus",), r"device must be one of this machine's, got 'abacus': "),
        (("--threads=0",), r"threads must be positive, got 0\."),
        (("--resume=nowhere",), r"a run directory is needed, but there is no directory nowhere\."),
        (("--dry_run", "--out=a"), r"a dry run writes nothing, so it takes neither --out nor --resume\."),
        (
            ("--batch_size=2000",),
            "batch_size must be at most the number of training examples, 1167, got 2000",
        ),
        (
            ("--model_path=nothing.pth",),
            r"model_path must be a run directory or a file of weights, .* nothing.pth",
        ),
        (("--optimizer=sdg",), r"optimizer must be one of .*, got 'sdg'; nearest: sgd"),
        (("--optimizer_options", "lr"), r"optimizer_options must be name=value, got 'lr'\."),
        (("--m=16",), r"m needs sam_rho or sam_lr_mult, or .*, without which it would do nothing\."),
        (("--epochs=1", "--epochs", "2"), r"--epochs must be given once, got it again\."),
        (("--quiet", "--no-quiet"), r"--quiet must be given once, got it again\."),
        ((f"--seed={10**30}",), f"--seed must be a whole number of at most 63 bits, got {10**30}"),
        ((f"--lr_max={'x' * 5000}",), rf"--lr_max must be a number, got '{'x' * 100}\.\.\.'\."),
        (("--resume=a\nb\udcff",), r"a run directory is needed, but there is no directory a\\nb\\udcff\."),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(run, words, message) -> None:
    given = {word.partition("=")[0] for word in words}
    small = [word for word in ("--model=fc", "--epochs=1") if word.partition("=")[0] not in given]
    code, out, err = run("train", *small, *words)
    assert code == 2
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert re.match(f"lowland: {message}", err), err


def test_an_empty_directory_cannot_be_resumed(run) -> None:
    Path("empty").mkdir()
    code, _, err = run("train", "--resume", "empty")
    assert (code, err) == (2, "lowland: a run directory is needed, but empty has no config.json.\n")


def test_a_resumed_run_takes_no_options_of_its_config(run) -> None:
    run("train", *TINY, "--out", "a")
    code, _, err = run("train", "--resume", "a", "--epochs", "3")
    assert (code, err) == (2, "lowland: a resumed run knows its own config, got --epochs.\n")


def test_a_dry_run_writes_nothing_but_the_cache(run, monkeypatch) -> None:
    monkeypatch.setenv("LOWLAND_CACHE", "cache")
    code, out, _ = run("train", *TINY, "--dry_run")
    assert code == 0
    assert "last, epoch 2" in out
    assert [path.name for path in Path().iterdir()] == ["cache"]


def test_a_full_disk_is_one_sentence_and_costs_no_earlier_file(run, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a/checkpoint/state.safetensors")

    monkeypatch.setattr(tensors, "save_file", full)
    code, _, err = run("train", *TINY, "--out", "a")
    assert code == 2
    assert err.startswith("lowland: a file could not be read or written: ")
    assert err.endswith("No space left on device.\n")
    monkeypatch.undo()
    assert not list(Path("a").rglob("*.tmp"))


def test_runs_are_listed_shown_and_compared(run) -> None:
    run("train", *TINY, "--out", "runs/a")
    run("train", *TINY, "--out", "runs/b", "--sam_rho=0.1")
    code, out, _ = run("runs", "list")
    assert code == 0
    assert "finished" in out
    code, out, _ = run("runs", "show", "runs/b")
    assert code == 0
    assert "sam_rho = 0.1" in out
    code, out, _ = run("runs", "compare", "runs/a", "runs/b")
    assert code == 0
    assert "sam_rho" in out
    assert "model_width" not in out, "only what differs"
    (drawn,) = Path("runs").glob("compare-*/compare.png")
    with Image.open(drawn) as picture:
        assert picture.width > 600
    run("train", *TINY, "--out", "runs/c", "--sam_rho=0.2")
    before = drawn.read_bytes()
    assert run("runs", "compare", "runs/a", "runs/c")[0] == 0
    assert run("runs", "compare", "runs/b", "runs/c", "--out", "here")[0] == 0
    assert Path("here/compare.png").exists()
    assert len(list(Path("runs").glob("compare-*/compare.png"))) == 2
    assert drawn.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("runs", "lst"), "runs command must be one of list, show, compare, got 'lst'; nearest: list"),
        (("runs", "compare", "a"), "at least 2 run directories are needed here, got 1."),
        (("runs", "show", "nowhere"), "a run directory is needed, but there is no directory nowhere."),
        (("runs", "list", "nowhere"), "a directory of runs is needed, but there is no nowhere."),
        (
            ("trian",),
            "command must be one of train, sweep, runs, sharpness, landscape, diagonal, relu, theorem2, ",
        ),
        (("demo", "--seeds=0"), "seeds must be positive, got 0."),
        (("demo", "--seeds=999999999"), "seeds must be at most 1000, got 999999999."),
        (("sharpness", "a", "--step_size=inf"), "step_size must be a finite number, got inf."),
        (("landscape", "a", "--low=nan"), "low must be a finite number, got nan."),
        (("diagonal", "--scaling=nan"), "scaling must be a finite number, got nan."),
        (("diagonal", "--d=9999999"), "d must be at most 1000000, got 9999999."),
        (("relu", "--scale=inf"), "scale must be a finite number, got inf."),
        (("relu", "--width=9999999"), "width must be at most 1000000, got 9999999."),
        (("theorem2", "--eigenvalues", "1", "nan"), "eigenvalues must be a finite number, got nan."),
        (("theorem2", "--m", "1", "9999999"), "m must be at most 1000000, got 9999999."),
    ],
)
def test_other_commands_refuse_in_one_sentence_too(run, words, message) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert err.startswith(f"lowland: {message}")
    assert err.count("\n") == 1


def test_what_does_not_fit_into_memory_is_a_sentence_and_a_mistake_of_the_program_is_not(
    run, monkeypatch
) -> None:
    def failing(error):
        def planned(_):
            raise error

        return planned

    monkeypatch.setattr("lowland.cli.relu.planned", failing(MemoryError("Unable to allocate 8. TiB")))
    said = "lowland: there must be memory for what is asked: Unable to allocate 8. TiB.\n"
    assert run("relu") == (2, "", said)
    monkeypatch.setattr("lowland.cli.relu.planned", failing(AttributeError("planted")))
    with pytest.raises(AttributeError, match="planted"):
        run("relu")


def test_help_and_version_are_found(run) -> None:
    assert run("--version") == (0, f"lowland {__version__}\n", "")
    assert run("--help")[0] == 0
    code, out, _ = run("train", "--help")
    assert code == 0
    assert "--sam_rho" in out
    assert "Radius of the perturbation" in out


def test_training_starts_from_the_weights_of_a_run(run) -> None:
    run("train", *TINY, "--out", "a")
    code, _, err = run("train", *TINY, "--out", "b", "--model_path", "a", "--lr_max=0")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in Path("b/metrics.jsonl").read_text().splitlines()]
    last = json.loads(Path("a/summary.json").read_text())["last"]
    assert rows[0]["test_loss"] == last["test_loss"]
    shutil.copy("a/model.safetensors", "weights.safetensors")
    code, _, err = run(
        "train", "--model=fc", "--model_width=9", "--model_path=weights.safetensors", "--out=c"
    )
    assert code == 2
    assert "must hold this model's weights, but differs in " in err
    assert "(9x64 needed, 8x64 in the file)" in err


def test_a_diverged_run_is_shown_like_any_other(run) -> None:
    words = ("train", *TINY, "--out", "a", "--n_layers=3", "--lr_max=1e30")
    code, _, err = run(*words)
    assert (code, err) == (0, "")
    assert json.loads(Path("a/summary.json").read_text())["last"]["train_loss"] is None
    code, out, _ = run("runs", "show", "a")
    assert code == 0
    assert "nan" in out
