"""``lowland demo``: its runs, its table, and the last lines, which follow from its results."""

import dataclasses
from pathlib import Path

import pytest

from lowland.cli import demo
from lowland.runs import Run
from lowland.sweeps import Here


@pytest.fixture
def tiny(monkeypatch):
    """Networks that train at once, each in this process."""
    runs = {label: dataclasses.replace(c, epochs=2, model_width=8) for label, c in demo.RUNS.items()}
    monkeypatch.setattr(demo, "RUNS", runs)
    monkeypatch.setattr(demo, "Processes", lambda _: Here())


def ends(*errors: list[float]) -> list[dict[str, object]]:
    """Of ERM, and of SAM with falling m: errors of the seeds."""
    return [
        {"method": method, "seed": seed, "test_error": error}
        for method, own in zip(demo.RUNS, errors, strict=True)
        for seed, error in enumerate(own)
    ]


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (
            ([30, 31, 32], [20, 22, 21], [10, 11, 12], [20, 23, 20]),
            "Better than ERM: 512-SAM, 8-SAM, 1-SAM; better than 512-SAM: 8-SAM.",
        ),
        (
            ([30, 31, 32], [20, 22, 21], [20, 23, 20], [31, 30, 35]),
            "Better than ERM: 512-SAM, 8-SAM; small m does not win here.",
        ),
        (
            ([30, 31, 32], [40, 41, 42], [50, 51, 52], [40, 43, 41]),
            "SAM does not win against ERM; small m does not win here.",
        ),
    ],
)
def test_the_last_line_follows_from_differences_seed_by_seed(errors, said) -> None:
    assert demo.verdict(ends(*errors)) == said


def test_one_seed_decides_nothing() -> None:
    assert demo.verdict(ends([30], [20], [10], [5])) == "One seed cannot show which is better."


@pytest.mark.usefixtures("tiny")
def test_a_second_demo_says_that_nothing_is_trained(run) -> None:
    count = len(demo.RUNS)
    code, out, _ = run("demo", "--out", "d", "--seeds", "1")
    assert code == 0
    assert f"Runs to train: {count}.\n" in out
    found = out[out.index(", 1 seed") :]
    code, out, _ = run("demo", "--out", "d", "--seeds", "1")
    assert code == 0
    assert out.startswith(f"All {count} runs are there already; nothing to train.\n")
    assert out.endswith(found)
    assert Path("d/demo.png").is_file()
    (
        next(iter(sorted(Path("d").glob("digits-*")))) / "summary.json"
    ).unlink()  # as after a stop in the middle
    out = run("demo", "--out", "d", "--seeds", "1")[1]
    assert f"Runs to train: 1. 1 of them begun already. {count - 1} of {count} are there already.\n" in out
    assert out.endswith(found)


@pytest.mark.usefixtures("tiny")
def test_more_seeds_train_only_what_is_new(run) -> None:
    run("demo", "--out", "d", "--seeds", "1")
    out = run("demo", "--out", "d", "--seeds", "2")[1]
    count = len(demo.RUNS)
    assert f"Runs to train: {count}. {count} of {2 * count} are there already.\n" in out
    assert {Run(path).config["seed"] for path in Path("d").glob("digits-*")} == {0, 1}


@pytest.mark.usefixtures("tiny")
def test_a_run_that_fails_is_told_and_the_same_command_tries_it_again(run) -> None:
    run("demo", "--out", "d", "--seeds", "1")
    first = next(iter(sorted(Path("d").glob("digits-*"))))
    (first / "summary.json").unlink()
    config = (first / "config.json").read_text()
    (first / "config.json").write_text(config.replace('"epochs": 2', '"epochs": 3'))
    code, out, _ = run("demo", "--out", "d", "--seeds", "1")
    assert code == 1
    assert f"failed: {first.name}: " in out
    (first / "config.json").write_text(config)
    assert run("demo", "--out", "d", "--seeds", "1")[0] == 0
