"""What is printed: the user's text as it is, legible everywhere, and no wider than the terminal."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowland.cli import main, progress
from lowland.cli.legible import legible
from lowland.cli.output import Output
from lowland.cli.progress import Rate
from lowland.deep import TrainConfig

TINY = ("--model=fc", "--model_width=8", "--epochs=1", "--quiet", "--device=cpu", "--threads=1")
ODD = "a[red]b[/nope]:smile:"


@pytest.fixture
def printed(capsys, monkeypatch):
    """What a table of some width looks like."""

    def printed(width: int, heads, rows, **named) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        Output().table(heads, rows, **named)
        return capsys.readouterr().out.splitlines()

    return printed


def test_brackets_and_colons_of_a_path_are_printed_as_they_are(run) -> None:
    out = run("train", *TINY, "--out", f"runs/{ODD}")[1]
    assert f"training in runs/{ODD}\n" in out
    assert ODD in run("runs", "list")[1]
    assert ODD in run("runs", "show", f"runs/{ODD}")[1]
    run("train", *TINY, "--out", "runs/b", "--seed=1")
    assert Path(ODD).name in run("runs", "compare", f"runs/{ODD}", "runs/b")[1]
    few = ("--n_eval", "32", "--device", "cpu")
    asked = ("--rho", "0.1", "--m", "16", "--steps", "2")
    for words in (("sharpness", *asked), ("landscape", "--points", "3")):
        code, out, err = run(
            words[0], f"runs/{ODD}", "runs/b", *few, *words[1:], "--out", f"x/{ODD}/{words[0]}"
        )
        assert (code, err) == (0, "")
        assert ODD in out
    code, out, err = run("report", f"runs/{ODD}", "--out", f"page/{ODD}")
    assert (code, err) == (0, "")
    assert f"page/{ODD}/index.html" in out


def test_a_table_that_fits_stands_beside_itself(printed) -> None:
    assert printed(80, ["", "loss"], [["GD", "0.1 ± 0.2"], ["SGD", "1"]]) == [
        "     loss",
        "GD   0.1 ± 0.2",
        "SGD  1",
    ]


def test_heads_and_words_are_wrapped_and_numbers_are_not(printed) -> None:
    lines = printed(24, ["run", "mean squared gradient"], [["n-SAM, then GD", "0.12345 ± 0.678"]])
    assert lines == ["run      mean squared", "         gradient", "n-SAM,   0.12345 ± 0.678", "then GD"]


def test_a_table_without_room_has_a_paragraph_per_row(printed) -> None:
    lines = printed(20, ["run", "loss", "m"], [["a", "0.12345 ± 0.678", "16"], ["b", "1", ""]])
    assert lines == ["a", "  loss: 0.12345 ±", "    0.678", "  m: 16", "b", "  loss: 1"]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_nothing_of_a_table_is_cut(printed, width) -> None:
    rows = [[f"network{i}", f"{10.0**i:.6g} ± 0.0{i}", "some words of a sentence"] for i in range(5)]
    lines = printed(width, ["network", "value", "what it is"], rows, title="a title of several words")
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "…" not in text
    assert all(cell.split()[0] in text for row in rows for cell in row)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_is_legible_in_every_encoding(encoding) -> None:
    text = "‖β‖₁ → λ₁ ± 0.1, ρ = ½ naïve ─│╭ ☃ …"
    shown = legible(text, encoding)
    assert shown.encode(encoding).decode(encoding) == shown
    if encoding == "ascii":
        assert shown == "||beta||1 -> lambda1 +/- 0.1, rho = 1/2 naive -|+ ? ..."
    if encoding == "utf-8":
        assert shown == text


SMALL = [
    "diagonal --steps 30 --seeds 2 --theory",
    "relu --steps 30 --seeds 2",
    "relu --steps 30 --seeds 2 --problem teacher-student",
    "theorem2 --steps 30 --seeds 3",
    "figure --list",
    "figure all --dry-run",
    "runs list",
    "runs show runs/a",
    "runs show x",
    "runs compare runs/a runs/b",
    "sharpness runs/a runs/b --rho 0.05 0.1 --m 16 --steps 2 --n_eval 32 --device cpu",
    "landscape runs/a runs/b --points 3 --n_eval 32 --device cpu",
    "train --model=fc --model_width=8 --epochs=1 --dry_run --quiet",
    *(
        f"{name} --help"
        for name in [
            "train",
            "sharpness",
            "landscape",
            "diagonal",
            "relu",
            "theorem2",
            "figure",
            "report",
            "demo",
            "sweep",
        ]
    ),
    "runs --help",
    "--help",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two training runs, and a simulation."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rho in (("a", "0"), ("b", "0.1")):
        main(["train", *TINY, "--out", str(folder / "runs" / name), "--sam_rho", rho])
    main(["diagonal", "--steps", "20", "--methods", "gd", "n-sam", "--out", str(folder / "x")])
    return folder


@pytest.fixture
def with_runs(run, runs):
    shutil.copytree(runs, ".", dirs_exist_ok=True)
    return run


@pytest.mark.parametrize("words", SMALL)
def test_everything_that_is_printed_fits_80_columns(with_runs, monkeypatch, words) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = with_runs(*words.split())
    assert (code, err) == (0, "")
    for line in out.splitlines():
        assert len(line) <= 80 or re.search(r"(picture|curves|interactive): |runs/|epoch \d", line), line
        assert "…" not in line, line


@pytest.mark.parametrize("words", ["diagonal --steps 30 --methods gd n-sam --theory", "--help"])
def test_an_ascii_terminal_gets_everything_spelled_out(tmp_path, words) -> None:
    plain = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "COLUMNS": "80"}
    command = [sys.executable, "-m", "lowland", *words.split()]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=plain, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode("ascii")
    if words.startswith("diagonal"):
        assert "rho = 0.1" in out
        assert "?" not in out


@pytest.mark.parametrize("words", ["figure --list", "theorem2 --steps 30 --seeds 2"])
def test_whatever_a_command_prints_has_a_spelling_in_ascii(tmp_path, monkeypatch, words) -> None:
    written = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
        assert main(words.split()) == 0
        assert len(written.getvalue().decode("ascii")) > 100


def test_a_pipe_that_nobody_reads_ends_the_command_without_a_word(tmp_path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lowland", "figure", "--list"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


class State:
    """What :class:`Rate` reads of a training state."""

    config = TrainConfig(batch_size=100)


def test_images_per_second_are_those_of_training_steps_alone(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    rate = Rate()

    def step(seconds: float) -> None:
        nonlocal now
        now += seconds
        rate.count(State())

    step(1000.0)  # data, start-up, the first step
    assert rate.text() == ""
    step(2.0)
    step(2.0)
    rate.pause()
    step(500.0)  # an evaluation, and a step
    step(2.0)
    assert rate.text() == " 50 examples/s"
