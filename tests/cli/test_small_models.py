"""``lowland diagonal``, ``lowland relu`` and ``lowland theorem2`` as a user meets them."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

COMMON = ["checkpoint", "config.json", "env.json", "metrics.jsonl", "result.parquet", "summary.json"]


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if not file.name.startswith("."))


def pictures(*names: str) -> list[str]:
    return [f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")]


def test_diagonal_leaves_a_whole_run_and_prints_the_notebooks_numbers(run) -> None:
    words = ("diagonal", "--methods", "gd", "n-sam", "--rho", "0.1", "--theory", "--threads", "2")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    (path,) = Path("runs").iterdir()
    assert path.name.startswith("diagonal-")
    wanted = [*COMMON, "weights.parquet", *pictures("losses", "radius", "theory")]
    assert files(path) == sorted(wanted)
    first = out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "0.01506" in rows["GD"]
    assert "0.01598" in rows["n-SAM,"]
    assert json.loads((path / "config.json").read_text())["command"] == "diagonal"
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["test_loss"] == pytest.approx(0.015056044189449159, rel=1e-9)
    assert json.loads((path / "summary.json").read_text())["runs"] == metrics
    with Image.open(path / "theory.png") as picture:
        assert picture.width > 800
    assert (path / "radius.pdf").read_bytes().startswith(b"%PDF")
    before = (path / "summary.json").stat().st_mtime_ns
    code, out, _ = run(*words)
    assert code == 0
    assert out == f"{path} is finished already; nothing to do.\n" + first[first.index("Theorem 1") :]
    assert (path / "summary.json").stat().st_mtime_ns == before


def test_seeds_are_summarized_by_mean_and_deviation(run) -> None:
    code, out, _ = run("diagonal", "--methods", "gd", "--steps", "50", "--seeds", "3", "--out", "three")
    assert code == 0
    assert out.count("±") == 5
    assert len((Path("three") / "metrics.jsonl").read_text().splitlines()) == 3


def test_phases_have_no_radius_picture(run) -> None:
    code, out, _ = run("diagonal", "--phases", "gd:0.1:20+1-sam:0.1:20:0.5", "--out", "p")
    assert code == 0
    assert "GD → 1-SAM, ρ = 0.5" in out
    assert files(Path("p")) == sorted([*COMMON, "weights.parquet", *pictures("losses")])


def test_relu_leaves_a_whole_run(run) -> None:
    code, out, err = run("relu", "--rho", "0", "0.3", "--seeds", "2", "--steps", "300", "--out", "r")
    assert (code, err) == (0, "")
    assert files(Path("r")) == sorted([*COMMON, "weights.parquet", *pictures("losses", "fits")])
    assert "slope variation" in out
    assert "n-SAM, ρ = 0.3" in out
    code, out, _ = run(
        *("relu", "--problem", "teacher-student", "--seeds", "2", "--steps", "300", "--out", "t")
    )
    assert code == 0
    assert "distinct" in out
    assert "fits.png" not in files(Path("t"))


def test_theorem_2_prints_both_statements(run) -> None:
    code, out, err = run("theorem2", "--m", "2", "--steps", "30", "--seeds", "3", "--out", "c")
    assert (code, err) == (0, "")
    assert files(Path("c")) == sorted([*COMMON, *pictures("theorem2")])
    assert "loss above the minimum" in out
    assert "mean squared gradient" in out
    table = out[out.index("picture: ") :].split("\n", 1)[1]
    code, again, _ = run("theorem2", "--m", "2", "--steps", "30", "--seeds", "3", "--out", "c")
    assert (code, again) == (0, "c is finished already; nothing to do.\n" + table)


@pytest.mark.parametrize(
    ("words", "picture"),
    [
        ("theorem2 --m 2 --steps 30 --seeds 3", "theorem2.pdf"),
        ("diagonal --methods gd n-sam --steps 30", "radius.png"),
        ("relu --rho 0 0.3 --steps 30 --seeds 2", "fits.png"),
    ],
)
def test_a_picture_that_is_missing_is_drawn_again_and_nothing_else_is_written(run, words, picture) -> None:
    run(*words.split(), "--out", "x")
    drawn = Path("x", picture).read_bytes()
    Path("x", picture).unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("x").glob("*.[jp]*") if path.stem not in picture}
    code, out, _ = run(*words.split(), "--out", "x")
    assert code == 0
    assert f"{Path(picture).stem} is missing and is drawn again" in out
    assert Path("x", picture).read_bytes() == drawn
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("diagonal --rho -1", "rho must be non-negative and finite, got -1.0."),
        ("diagonal --rho 0.1 x", "--rho must be a number, got 'x'."),
        ("diagonal --methods gd foo", "--methods must be one of gd, sgd, n-sam, 1-sam, m-sam, got 'foo'."),
        ("diagonal --alpha 0", "alpha must be a positive number or 30 of them, got 0.0."),
        ("diagonal --threads 0", "threads must be positive, got 0."),
        ("diagonal --data no.npz", "a file could not be read or written: no.npz: No such file or directory."),
        ("diagonal --phases gd:1", "a phase must be METHOD:GAMMA:STEPS[:RHO[:M]], got 'gd:1'."),
        (
            "diagonal --gama 1",
            "every option must be one that --help lists, got --gama; nearest: --gamma.",
        ),
        ("relu --points 5", "points must be 12 for the target maennel, got 5."),
        ("relu --batch 13", "batch must be at most the 12 examples, got 13."),
        ("relu --width 0", "width, d and scale must be positive, got 0, 1 and 1.0."),
        ("theorem2 --m 0", "m must be positive, got 0."),
        ("theorem2 --eigenvalues 0", "eigenvalues must be non-negative, one of them positive, got (0.0,)."),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_input_is_one_sentence_and_writes_nothing(run, words, message) -> None:
    assert run(*words.split(), "--out", "new") == (2, "", f"lowland: {message}\n")
    assert not Path("new").exists()


def test_a_directory_of_something_else_stays_as_it_is(run) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    code, _, err = run("relu", "--steps", "5", "--out", "mine")
    assert code == 2
    assert err == "lowland: mine must be a new or empty directory, or a run; it holds other files.\n"
    assert files(Path("mine")) == ["letter.txt"]


def test_an_unfinished_run_begins_again(run) -> None:
    words = ("diagonal", "--methods", "gd", "--steps", "20", "--out", "d")
    run(*words)
    rows = Path("d/metrics.jsonl").read_bytes()
    Path("d/summary.json").unlink()
    Path("d/losses.png").unlink()
    code, out, _ = run(*words)
    assert code == 0
    assert "picture: d/losses.png" in out
    assert Path("d/metrics.jsonl").read_bytes() == rows


def test_runs_lists_and_shows_them_and_compares_training_only(run) -> None:
    run("diagonal", "--methods", "gd", "--steps", "20", "--out", "runs/d")
    run("relu", "--rho", "0", "--steps", "20", "--seeds", "1", "--out", "runs/r")
    Path("runs/r/summary.json").unlink()
    code, out, _ = run("runs", "list")
    assert code == 0
    assert re.search(r"\(diagonal\) .* finished ", out)
    assert re.search(r"\(relu\) .* unfinished ", out)
    code, out, _ = run("runs", "show", "runs/d")
    assert code == 0
    assert "stream = legacy" in out
    assert "train_loss" in out
    code, _, err = run("runs", "compare", "runs/d", "runs/r")
    assert code == 2
    assert err == "lowland: runs of lowland train can be compared, but runs/d was made by another command.\n"
