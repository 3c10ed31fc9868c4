"""``lowland sweep``: the runs that one makes by hand, each once, however often it is stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scipy import stats

from lowland.cli import main
from lowland.cli.against_erm import against_erm
from lowland.runs import Run
from lowland.sweeps import Point

TINY = "--model fc --model_width 8 --frac_train 0.2 --batch_size 32"
GRID = f"{TINY} --epochs 2 --sam_rho 0.1 0.3 --m 4 32 --seeds 2"


def sweep(*more):
    return ("sweep", *shlex.split(GRID), *more)


def weights(folder):
    return {path.parent.name: path.read_bytes() for path in Path(folder).glob("runs/*/model.safetensors")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sweep, made in this process, and what it printed."""
    folder = tmp_path_factory.mktemp("made")
    words = [*sweep("--engine", "here", "--out", str(folder))]
    done = subprocess.run(
        [sys.executable, "-m", "lowland", *words], capture_output=True, text=True, check=True, cwd=folder
    )
    return folder, done.stdout


def test_runs_are_those_of_lowland_train(made, tmp_path, capsys) -> None:
    folder, _ = made
    words = [*shlex.split(TINY), "--epochs", "2", "--sam_rho", "0.3", "--m", "4", "--seed", "1"]
    threads = str(os.cpu_count())
    assert main(["train", *words, "--threads", threads, "--quiet", "--out", str(tmp_path / "x")]) == 0
    capsys.readouterr()
    (name,) = [path.name for path in folder.glob("runs/*-sam0.3-m4-seed1-*")]
    assert weights(folder)[name] == (tmp_path / "x" / "model.safetensors").read_bytes()
    assert len(weights(folder)) == 8


def test_the_table_has_means_over_seeds_and_the_radius_that_validation_chose(made) -> None:
    folder, out = made
    finals = {path.name: Run(path).last_row() for path in folder.glob("runs/*-seed*")}
    pair = [finals[name]["test_error"] for name in finals if "-sam0.1-m4-" in name]
    mean, deviation = 50 * sum(pair), 100 * abs(pair[0] - pair[1]) / 2**0.5
    (line,) = [line for line in out.splitlines() if line.startswith("0.1      4 ")][:1]
    assert f"{mean:.2f} ± {deviation:.2g}" in line
    for m in ("4", "32"):
        validation = {
            rho: sum(row["validation_error"] for name, row in finals.items() if f"-sam{rho}-m{m}-" in name)
            for rho in ("0.1", "0.3")
        }
        best = min(validation, key=validation.get)
        marked = [
            line.split()[0] for line in out.splitlines() if "best radius" in line and f" {m} " in line[:14]
        ]
        assert set(marked) == {best}


def test_a_finished_sweep_runs_nothing_and_shows_the_same(made, capsys) -> None:
    folder, out = made
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")}
    assert main([*sweep("--out", str(folder))]) == 0
    again = capsys.readouterr().out
    assert "8 runs, 8 of them done" in again
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")} == before
    (path,) = folder.glob("sweep-*")
    assert main(["sweep", "show", str(path)]) == 0
    shown = capsys.readouterr().out.split("picture:")[0]
    assert shown in out
    assert shown in again
    assert main(["sweep", "show", str(path), "--metric", "train_loss", "--at", "best"]) == 0
    assert "train_loss, epoch chosen on validation" in capsys.readouterr().out


def test_a_larger_sweep_makes_only_what_is_new(made, capsys) -> None:
    folder, _ = made
    more = shlex.split(GRID.replace("0.1 0.3", "0.1 0.3 0.5"))
    assert main(["sweep", *more, "--out", str(folder), "--dry_run"]) == 0
    assert "runs: 12, of which done: 8" in capsys.readouterr().out


def test_the_report_has_the_sweep(made, capsys, tmp_path) -> None:
    folder, _ = made
    assert main(["report", str(folder), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 figures, 1 sweeps, 8 own runs")
    page = (tmp_path / "index.html").read_text()
    assert "test error by sam_rho, m" in page
    assert "scale" not in page.partition("<figure")[0].partition("</head>")[2]


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.stress), "2"])
def test_stopped_and_killed_sweeps_go_on_to_the_same_bytes(made, tmp_path, jobs) -> None:
    folder, _ = made
    command = [sys.executable, "-m", "lowland", *sweep("--jobs", jobs, "--out", str(tmp_path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=environment, preexec_fn=heed, cwd=tmp_path
        ) as process:
            done = len(weights(tmp_path))
            while len(weights(tmp_path)) == done and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(number)
        if number == signal.SIGINT:
            assert process.returncode == 130
    assert main([*sweep("--engine", "here", "--threads", "1", "--out", str(tmp_path))]) == 0
    found, expected = weights(tmp_path), weights(folder)
    assert found.keys() == expected.keys()
    assert found == expected


def heed():
    """A shell that runs tests in the background has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "at least one option of lowland train must be given to sweep, got none."),
        ("--sam_rho 0.1 x", "--sam_rho must be a number, got 'x'."),
        ("--sam_roh 0.1", "every option must be one that --help lists, got --sam_roh; nearest: --sam_rho"),
        ("--lr_max 1 --engine loop", "--engine must be one of processes, here, ray, got 'loop'"),
        ("--sam_rho 0.1 --sam_engine fast", "--sam_engine must be one of auto, loop, batched, got 'fast'"),
        ("--lr_max 1 --retries 3", "retries must be left out for engine processes, which does not read it"),
        ("--lr_max 1 --jobs 2 --engine here", "jobs must be left out for engine here"),
        ("--lr_max 1 --jobs 0", "jobs must be positive, got 0."),
        ("--lr_max 1 --engine ray --cpus_per_task 0", "cpus_per_task must be positive and finite, got 0.0."),
        ("--lr_max 1 --engine ray --gpus_per_task 99", "gpus_per_task must be at most this machine's "),
        ("--lr_max 1 --engine ray --retries -1", "retries must be non-negative, got -1."),
        ("--lr_max 1 --engine ray --address auto --jobs 2", "jobs must be left out with address"),
        (
            "--model_path a b --engine ray",
            "model_path needs shared_store with engine ray, which all machines see, got a.",
        ),
        ("--lr_max 1 --seeds 0", "seeds must be positive, got 0."),
        ("--lr_max 1 --seeds 2 --seed 1", "seed must be left out beside seeds, got (1,)."),
        ("--lr_max 1 2 --seeds 9000", "a sweep must have at most 10000 runs, got 18000 combinations."),
        ("--no_data_augm yes", "--no_data_augm must be one of on, off, got 'yes'"),
        ("--lr_max 1 --metric test_eror", "metric must be one of"),
        ("--lr_max 1 --metric test_loss --dry_run", "metric must be left out with --dry-run"),
        ("--lr_max 1 --jobs 2 --dry_run", "jobs must be left out with --dry-run, which runs nothing"),
        ("--lr_max 1 --device abacus", "device must be one of this machine's, got 'abacus'"),
        ("--lr_max 1 --dataset mnist --data_dir .", "mnist"),
        ("--lr_max 1 --part 3/2", "part must be I/N with I from 1 to N, got '3/2'."),
        ("--lr_max 1 --part two", "part must be I/N with I from 1 to N, got 'two'."),
        ("--from nothing.toml", "nothing.toml must be a file of configs that can be read"),
        ("show", "directories of sweeps"),
        ("show nothing", "a directory of lowland sweep is needed, but nothing has no sweep.json."),
    ],
)
def test_wrong_words_are_one_sentence_and_nothing_is_written(run, tmp_path, words, message) -> None:
    code, out, err = run("sweep", *shlex.split(words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_flags_none_and_files_are_values_like_others(run, tmp_path) -> None:
    (tmp_path / "list.toml").write_text('[[run]]\nmodel = "fc"\n[[run]]\nmodel = "linear"\nlr_max = 0.5\n')
    words = "--from list.toml --no_data_augm on off --sam_rho 0.1 --m None 4 --sam_engine loop --dry_run"
    code, out, err = run("sweep", *shlex.split(words))
    assert (code, err) == (0, "")
    assert "runs: 8, of which done: 0" in out
    for line in ("no_data_augm: True, False", "m: -, 4", "model: fc, linear", "lr_max: 0.1, 0.5"):
        assert line in out
    assert not (tmp_path / "runs").exists()


def test_parts_are_all_runs_together(made, run, tmp_path) -> None:
    folder, _ = made
    for i in (1, 2, 3):
        code, out, err = run(*sweep("--engine", "here", "--out", "out", "--part", f"{i}/3"))
        assert (code, err) == (0, "")
        assert f"part {i}/3 is done" in out
        assert not list(tmp_path.glob("out/sweep-*/figure.png"))
    assert weights(tmp_path / "out").keys() == weights(folder).keys()
    code, out, err = run(*sweep("--out", "out"))
    assert "8 runs, 8 of them done" in out
    assert list(tmp_path.glob("out/sweep-*/figure.png"))


def test_a_run_that_fails_is_told_and_the_others_are_shown(run, tmp_path) -> None:
    words = f"{TINY} --epochs 1 --lr_max 0.1 --engine here --out out --batch_size 32 5000".replace(
        " --batch_size 32 ", " ", 1
    )
    code, out, _ = run("sweep", *shlex.split(words))
    assert code == 1
    assert "failed: " in out
    assert "1 of 2 runs are not there." in out
    (path,) = (tmp_path / "out").glob("sweep-*")
    about = json.loads((path / "figure.json").read_text())
    assert len(about["missing"]) == 1
    assert "batch" in next(iter(about["missing"].values()))


def beside(sam, erm, validation=(0.1, 0.2), metric="test_error"):
    """What is said of SAM's and ERM's values, seed by seed."""
    of_sam, of_erm = validation
    seeds = tuple(range(len(erm)))
    plain = Point({"sam_rho": 0.0, "m": None}, erm, (of_erm,), seeds=seeds, is_erm=True)
    point = Point(
        {"sam_rho": 0.1, "m": 4}, sam, (of_sam,), is_chosen=True, seeds=seeds[: len(sam)], erm=plain
    )
    (said,) = against_erm([plain, point], metric)
    return said


def test_the_difference_to_erm_is_that_of_pairs_with_students_interval() -> None:
    sam, erm = (0.10, 0.13, 0.11), (0.12, 0.14, 0.135)
    interval = stats.ttest_rel(sam, erm).confidence_interval(0.95)
    mean, half = 50 * (interval.high + interval.low), 50 * (interval.high - interval.low)
    expected = f"test_error {mean:+.2f} ± {half:.2f} percentage points (95 % interval, 3 paired seeds)"
    assert beside(sam, erm) == f"sam_rho 0.1, m 4 minus ERM: {expected}: cannot be told."


def test_a_verdict_needs_an_interval_without_zero_and_so_two_seeds() -> None:
    assert beside((0.10, 0.11), (0.15, 0.161)).endswith("2 paired seeds): lower than ERM.")
    assert beside((0.15, 0.161), (0.10, 0.11)).endswith("2 paired seeds): higher than ERM.")
    assert beside((0.1, 0.2), (0.2, 0.1)).endswith("2 paired seeds): cannot be told.")
    one = beside((0.1,), (0.15,))
    assert one.endswith("test_error -5.00 percentage points (one seed: no interval, no verdict).")
    assert beside((0.1,), (0.15, 0.3)) == one, "of seeds that both have"
    assert beside((float("nan"), 0.1), (0.1, 0.1)).endswith("as a run diverged: cannot be told.")
    assert "test_loss -0.05 (one seed" in beside((0.1,), (0.15,), metric="test_loss")


def test_it_is_said_when_validation_chooses_erm() -> None:
    assert beside((0.1,), (0.15,), validation=(0.2, 0.1)).endswith("; validation chooses ERM.")
    assert "validation chooses" not in beside((0.1,), (0.15,), validation=(0.1, 0.2))


def test_radius_0_is_called_erm_and_every_m_is_compared_with_it(run, tmp_path) -> None:
    words = f"{TINY} --epochs 1 --sam_rho 0 0.1 0.3 --m 4 16 --seeds 2 --engine here --out out"
    code, out, _ = run("sweep", *shlex.split(words))
    assert code == 0
    lines = out.splitlines()
    (erm,) = {line.split("  ")[0] for line in lines if line.startswith("0 (ERM)")}
    assert erm == "0 (ERM)"
    said = " ".join(line.strip() for line in lines if not line.startswith("picture:"))
    for m in (4, 16):
        assert f"m {m} minus ERM: test_error " in said
    assert said.count("(95 % interval, 2 paired seeds): ") == 2
    (path,) = (tmp_path / "out").glob("sweep-*")
    assert "0 (ERM)" in (path / "figure.svg").read_text()
    code, again, _ = run("sweep", "show", str(path), "--metric", "train_loss")
    assert again.count("minus ERM: train_loss ") == 2


def test_without_erm_nothing_is_said_of_it(made) -> None:
    assert "ERM" not in made[1]
