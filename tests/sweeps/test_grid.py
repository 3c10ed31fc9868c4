"""Grids of runs: every combination once, what nothing reads left out, and lists from files."""

import itertools

import pytest

from lowland.deep import TrainConfig
from lowland.errors import InputError
from lowland.sweeps import grid
from lowland.sweeps.grid import listed_in


def described(found, *names):
    return [tuple(getattr(config, name) for name in names) for config in found.configs]


def test_every_combination_is_there_once() -> None:
    options = {"lr_max": [0.1, 0.2], "epochs": [3, 4, 5], "seed": range(2)}
    found = grid(options)
    assert described(found, *options) == list(itertools.product(*options.values()))
    assert found.swept == ("epochs", "lr_max"), "in the order of the config, without the seed"


def test_what_a_run_would_not_read_is_left_out_and_equal_runs_are_one() -> None:
    found = grid({"sam_rho": [0.0, 0.1], "m": [1, 16], "sam_iters": [2], "model": ["fc"]})
    assert described(found, "sam_rho", "m", "sam_iters") == [(0.0, None, 1), (0.1, 1, 2), (0.1, 16, 2)]
    assert set(found.left_out) == {"m", "sam_iters"}
    assert grid({"sam_rho": [0.1], "m": [1, 16]}).left_out == {}
    whole = grid({"sam_rho": [0.0, 0.1], "m": [1, 128], "model": ["fc"]})  # a group of all is none either
    assert described(whole, "sam_rho", "m") == [(0.0, None), (0.1, 1), (0.1, 128)]


def test_what_no_run_reads_is_refused_as_by_a_single_run() -> None:
    with pytest.raises(InputError) as of_one:
        TrainConfig(model="fc", m=16)
    with pytest.raises(InputError) as of_many:
        grid({"model": ["fc"], "m": [16, 32], "lr_max": [0.1, 0.2]})
    assert str(of_many.value) == str(of_one.value)
    with pytest.raises(InputError) as of_listed:
        grid({"lr_max": [0.1, 0.2]}, listed=[{"model": "fc", "m": 16}])
    assert str(of_listed.value) == str(of_one.value)


def test_options_vary_together() -> None:
    found = grid({"sam_rho": [0.1, 0.2], "m": [16, 1], "seed": [0, 1]}, together=[["sam_rho", "m"]])
    assert described(found, "sam_rho", "m", "seed") == [(0.1, 16, 0), (0.1, 16, 1), (0.2, 1, 0), (0.2, 1, 1)]


def test_listed_configs_are_crossed_with_the_options() -> None:
    found = grid({"seed": [0, 1]}, listed=[{"sam_rho": 0.1, "m": 4}, {"lr_max": 0.3}])
    assert described(found, "sam_rho", "m", "lr_max", "seed") == [
        (0.1, 4, 0.1, 0),
        (0.1, 4, 0.1, 1),
        (0.0, None, 0.3, 0),
        (0.0, None, 0.3, 1),
    ]


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"sam_roh": [1]}, {}, "option must be one of .*, got 'sam_roh'; nearest: sam_rho"),
        ({"lr_max": [-1.0]}, {}, "lr_max must be non-negative, got -1.0."),
        ({"m": [1, 2], "sam_rho": [0.1]}, {"together": [["m", "sam_rho"]]}, ".* got 2 of m, 1 of sam_rho."),
        ({"m": [1, 2]}, {"together": [["m", "sam_rho"]]}, ".* got 2 of m, 0 of sam_rho."),
        (
            {"m": [1], "sam_rho": [0.1], "seed": [2]},
            {"together": [["m", "sam_rho"], ["m", "seed"]]},
            "an option may vary together with others once, got m, sam_rho, m, seed.",
        ),
        ({"seed": [1]}, {"listed": [{"seed": 2}]}, "seed must be given once, got it for all runs and in a"),
    ],
)
def test_wrong_grids_are_refused(options, more, message) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        grid(options, **more)


def test_configs_are_read_from_lines_and_tables(tmp_path) -> None:
    lines, tables = tmp_path / "a.jsonl", tmp_path / "a.toml"
    lines.write_text('{"sam_rho": 0.1, "optimizer_options": ["momentum=0.5"]}\n\n{"m": 4, "sam_rho": 1}\n')
    tables.write_text(
        '[[run]]\nsam_rho = 0.1\noptimizer_options = ["momentum=0.5"]\n[[run]]\nm = 4\nsam_rho = 1\n'
    )
    expected = [{"sam_rho": 0.1, "optimizer_options": ("momentum=0.5",)}, {"m": 4, "sam_rho": 1}]
    assert listed_in(lines) == listed_in(tables) == expected
    assert grid({}, listed=listed_in(lines)).configs[0].optimizer_arguments == {"momentum": 0.5}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "must hold at least one config, got none."),
        ("a.jsonl", "{}\n[1]\n", "line 2 of .* must be an object"),
        ("a.jsonl", "{}\n{\n", "line 2 of .* must be a JSON object: "),
        ("a.jsonl", '{"m": NaN}\n', "line 1 of .* must be a JSON object: NaN"),
        ("a.jsonl", '{"mm": 1}\n', "option in .* must be one of .*, got 'mm'"),
        ("a.jsonl", '{"optimizer_options": [1]}\n', "optimizer_options"),
        ("a.toml", "run = 1\n", "run in .* must be a list"),
        ("a.toml", "m = 1\n", r"must hold tables \[\[run\]\] only, got m."),
        ("a.toml", "[[run]\n", "must be a TOML file: "),
    ],
)
def test_files_of_configs_that_are_none_are_refused(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        listed_in(tmp_path / name)


def test_values_from_a_file_are_checked(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"epochs": "3"}\n')
    with pytest.raises(InputError, match="epochs must be a whole number, got '3'"):
        grid({}, listed=listed_in(tmp_path / "a.jsonl"))
