"""``lowland runs`` and ``lowland env``, by files of runs that are written here."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from lowland.cli import env
from lowland.cli.progress import describe
from lowland.deep import TrainConfig
from lowland.runs import Run

DAY = 86_400.0
NOON = 1_700_049_600.0


def made(
    name: str, config: dict[str, Any], rows: list[dict[str, Any]], *, best: int | None = None, day: int = 0
) -> None:
    """A run, finished if there is a best row; its last row was written that many days after NOON."""
    stored = Run.create(Path(name), config, {})
    for row in rows:
        stored.append(row)
    if best is not None:
        stored.finish({"last": rows[-1], "best": rows[best], "swa_best": rows[0]})
    for file, later in (("config.json", 0.0), ("metrics.jsonl", 3600.0)):
        if (stored.path / file).exists():
            os.utime(stored.path / file, (NOON + DAY * day + later,) * 2)


def row(epoch: int, error: float | None, loss: float | None = 1.0) -> dict[str, Any]:
    found = {
        "epoch": float(epoch),
        "full": True,
        "train_loss": loss,
        "validation_loss": loss,
        "test_loss": loss,
    }
    errors = ("train_error", "validation_error", "test_error")
    return found if error is None else found | dict.fromkeys(errors, error)


@pytest.fixture
def listed(run):
    """Four runs of ours, one of another command, one that cannot be read."""
    fc = {"model": "fc", "epochs": 12}
    made("runs/erm", TrainConfig(**fc).to_dict(), [row(0, 0.9), row(6, 0.04), row(12, 0.05)], best=1, day=3)
    sam = TrainConfig(**fc, sam_rho=0.1, m=16, dataset="mnist", seed=7).to_dict()
    made("runs/sam", sam, [row(0, 0.9), row(3, 0.5)], day=1)
    made("runs/new", TrainConfig(**fc, sam_lr_mult=0.5).to_dict(), [], day=4)
    own = TrainConfig(**fc, data="some/where/wine.npz", loss="mse", sam_rho=0.02).to_dict()
    made("runs/wine", own, [row(0, None, 3.0), row(12, None, 0.25)], best=1, day=2)
    made("runs/theory", {"command": "diagonal"}, [], day=0)
    Path("runs/bad").mkdir()
    Path("runs/bad/config.json").write_text('{"sam_rhoo": 1}')
    return run


def test_json_is_one_array_of_what_the_files_say(listed) -> None:
    code, out, err = listed("runs", "list", "--json")
    assert code == 0
    assert err.startswith("lowland: runs/bad: option must be one of ")
    assert err.count("\n") == 1
    found = {row["run"]: row for row in json.loads(out)}
    assert list(found) == [f"runs/{name}" for name in ("theory", "sam", "wine", "erm", "new")]
    assert found["runs/erm"] == {
        "run": "runs/erm",
        "command": "train",
        "status": "finished",
        "begun": "2023-11-18T12:00:00+00:00",
        "written": "2023-11-18T13:00:00+00:00",
        "data": "digits",
        "model": "fc",
        "method": "ERM",
        "rho": 0.0,
        "rho_per_lr": None,
        "m": None,
        "epochs": 12,
        "epoch": 12.0,
        "seed": 0,
        "test_error": 0.05,
        "test_loss": 1.0,
        "chosen_test_error": 0.04,
        "chosen_test_loss": 1.0,
    }
    sam = found["runs/sam"]
    assert (sam["data"], sam["rho"], sam["m"], sam["seed"]) == ("mnist", 0.1, 16, 7)
    assert (sam["status"], sam["epoch"], sam["test_error"], sam["chosen_test_error"]) == (
        "epoch 3",
        3,
        0.5,
        None,
    )
    new = found["runs/new"]
    assert (new["status"], new["rho"], new["rho_per_lr"], new["m"], new["epoch"]) == (
        "not begun",
        None,
        0.5,
        128,
        None,
    )
    wine = found["runs/wine"]
    assert (wine["data"], wine["test_error"], wine["test_loss"]) == ("wine", None, 0.25)
    assert found["runs/theory"]["command"] == "diagonal"
    assert found["runs/theory"]["model"] is None
    assert {frozenset(row) for row in found.values()} == {frozenset(sam)}


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("date", "theory sam wine erm new"),
        ("run", "erm new sam theory wine"),
        ("rho", "erm wine sam new theory"),
        ("m", "sam wine new theory erm"),
        ("test", "erm sam wine theory new"),
        ("chosen", "erm wine theory sam new"),
        ("data", "erm new sam wine theory"),
        ("status", "sam wine erm new theory"),
    ],
)
def test_runs_are_sorted_by_any_column_and_what_is_missing_comes_last(listed, by, order) -> None:
    found = json.loads(listed("runs", "list", "--sort", by, "--json")[1])
    assert [Path(row["run"]).name for row in found] == order.split()


def test_the_table_has_every_run_and_names_what_cannot_be_read(listed, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = listed("runs", "list", "runs")
    assert (code, err) == (0, "")
    heads, *lines = out.splitlines()
    assert heads.split() == ["run", "date", "data", "model", "ρ", "m", "epochs", "status", "test", "chosen"]
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    date = str(datetime.fromtimestamp(NOON + 3 * DAY + 3600).date())
    assert cells["runs/erm"] == [date, "digits", "fc", "ERM", "-", "12", "finished", "5.00%", "4.00%"]
    assert cells["runs/sam"][1:] == ["mnist", "fc", "0.1", "16", "12", "epoch", "3", "50.00%", "-"]
    assert cells["runs/new"][3:6] == ["0.5", "lr", "128"]
    assert cells["runs/wine"][-2:] == ["0.25", "0.25"]
    assert cells["runs/theory"][2:] == ["(diagonal)", "-", "-", "-", "unfinished", "-", "-"]
    assert "unreadable" in cells["runs/bad"]
    assert "unreadable: runs/bad: option must be one of" in out


def test_at_80_columns_long_names_stand_above_their_rows(run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "runs/" + "digits-resnet_tiny_gn-noise0.6-sam0.1-m16-seed0-0123456789"
    config = TrainConfig(dataset="cifar10", sam_rho=0.05, m=128)
    made(name, config.to_dict(), [row(0, 0.9), row(100, 0.05)], best=1)
    out = run("runs", "list")[1]
    heads, units, above, cells = out.splitlines()
    assert heads.split() == ["date", "data", "model", "ρ", "m", "epochs", "status", "test", "%", "chosen"]
    assert units.split() == ["%"]
    assert above == name
    assert cells.split()[1:] == [
        "cifar10",
        "resnet_tiny_gn",
        "0.05",
        "128",
        "100",
        "finished",
        "5.00",
        "5.00",
    ]
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("runs", "--json"), "a directory of runs is needed, but there is no runs."),
        (("--sort", "m"), "a directory of runs is needed, but there is no runs."),
        (("--sort", "colour"), "--sort must be one of run, date, data,"),
        (("--jsno",), "every option must be one that --help lists, got --jsno; nearest: --json."),
        (("--json", "runs"), "only options are expected here, got 'runs'."),
    ],
)
def test_what_cannot_be_listed_is_said_in_one_sentence(run, words, message) -> None:
    code, out, err = run("runs", "list", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_no_runs_are_an_empty_array(run) -> None:
    Path("runs").mkdir()
    assert run("runs", "list", "--json") == (0, "[]\n", "")
    assert run("runs", "list") == (0, "no runs below runs\n", "")


def test_runs_whose_targets_are_numbers_are_shown_and_compared_by_their_loss(listed, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = listed("runs", "show", "runs/wine")
    assert code == 0
    assert "data = some/where/wine.npz" in out
    assert "validation loss  test loss" in out
    assert "last        12     0.2500      0.2500           0.2500" in out
    code, out, _ = listed("runs", "compare", "runs/wine", "runs/erm", "--out", "here")
    assert code == 0
    assert "some/where/wine.npz" in out  # an option that the other run's config has not
    assert "0.25" in out
    assert "5.00%" in out
    assert Path("here/compare.png").exists()


def test_each_runs_command_has_help(run) -> None:
    for words in ((), ("list",), ("compare",), ("show",)):
        code, out, err = run("runs", *words, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: lowland runs {words[0] if words else 'list'}"[:20])
        assert max(map(len, out.splitlines())) <= 80


def test_the_environment_is_what_other_places_say_it_is(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LOWLAND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", "/somewhere")
    code, out, err = run("env", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert torch.__version__ in (found["versions"]["torch"], found["versions"]["torch"].partition("+")[0])
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert found["machine"]["CPUs"] == os.cpu_count()
    assert found["paths"]["cache"] == str(tmp_path / "cache")
    assert found["paths"]["HF_HOME"] == "/somewhere"
    assert "LOWLAND_DATA" not in found["paths"]
    assert len(found["accelerators"]) >= torch.accelerator.device_count()
    text = run("env")[1]
    assert f"  torch                   {found['versions']['torch']}\n" in text
    assert "HF_HOME" in text
    assert max(map(len, text.splitlines())) < 200


def test_what_cannot_be_found_out_is_said_and_hides_nothing_else(run, monkeypatch) -> None:
    def broken() -> None:
        raise ImportError("libtorch.so: cannot open\nshared object file")

    for name in ("_torch", "_accelerators", "_processor", "_cache"):
        monkeypatch.setattr(env, name, broken)
    code, out, err = run("env", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    said = "not found out: ImportError: libtorch.so: cannot open"
    assert found["torch"] == {"torch": said}
    assert found["accelerators"] == {"accelerators": said}
    assert found["machine"]["processor"] == found["paths"]["cache"] == said
    assert found["versions"]["numpy"]


def test_a_row_of_numbers_is_described_by_its_losses_and_a_diverged_one_is_nan() -> None:
    assert describe(row(1, None, 0.25)) == "loss 0.2500  validation 0.2500  test 0.2500"
    assert describe(row(1, None, None)) == "loss nan  validation nan  test nan"
    assert describe(row(1, 0.5)) == "loss 1.0000  train error 50.00 %  validation 50.00 %  test 50.00 %"
