"""TensorBoard's logs, read back by TensorBoard."""

import json
import sys
from pathlib import Path

import pytest

from lowland.cli import main, tensorboard

TINY = ("train", "--model=fc", "--model_width=8", "--epochs=4", "--quiet", "--device=cpu", "--threads=1")
LOGGED = (*TINY, "--out=a", "--log=tensorboard")


def read(folder: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard finds them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(folder, size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(run: str, name: str) -> list[tuple[int, float]]:
    """What the run's own file says, in the precision of TensorBoard."""
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]


def assert_is_what_the_run_says(run: str) -> None:
    found = read(f"{run}/tensorboard")
    for tag, name in (
        ("train/loss", "train_loss"),
        ("train/objective", "train_objective"),
        ("validation/error", "validation_error"),
        ("test/error", "test_error"),
        ("swa/test_error", "swa_test_error"),
        ("sharpness/small", "sharpness_small"),
        ("lr", "lr"),
        ("rho", "rho"),
        ("epoch", "epoch"),
    ):
        assert found[tag] == expected(run, name)
    assert len(found["train/loss"]) == 5
    assert not {"full", "step", "seconds"} & found.keys()
    assert len(list(Path(run, "tensorboard").iterdir())) == 1


def test_rows_are_scalars_in_groups_by_steps(run) -> None:
    pytest.importorskip("tensorboard")
    assert run(*LOGGED)[::2] == (0, "")
    assert_is_what_the_run_says("a")
    run(*TINY, "--out=b")
    assert not Path("b/tensorboard").exists()
    assert Path("a/metrics.jsonl").read_text().count("\n") == Path("b/metrics.jsonl").read_text().count("\n")


@pytest.mark.parametrize("checkpoint_every", [(), ("--checkpoint_every=1000",)])
@pytest.mark.parametrize("again", [("--log=tensorboard",), ()])
def test_a_run_that_was_killed_has_each_point_once(run, monkeypatch, checkpoint_every, again) -> None:
    pytest.importorskip("tensorboard")
    rows, on_row = 0, tensorboard.EventLog.on_row

    def killed(self, row) -> None:
        nonlocal rows
        on_row(self, row)
        rows += 1
        if rows == 4:  # written, and after the last checkpoint
            raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(tensorboard.EventLog, "on_row", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main([*LOGGED, *checkpoint_every])
    assert len(read("a/tensorboard")["train/loss"]) == 4
    assert run("train", "--resume=a", "--quiet", *again)[0] == 0
    assert_is_what_the_run_says("a")


def test_a_finished_run_is_logged_when_it_is_asked_for(run) -> None:
    pytest.importorskip("tensorboard")
    run(*TINY, "--out=a")
    for _ in range(2):
        code, out, _ = run(*LOGGED)
        assert code == 0
        assert "finished already" in out
        assert_is_what_the_run_says("a")


def test_without_tensorboard_nothing_is_begun(run, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = "tensorboard must be installed, pip install 'lowland[tensorboard]', got no such package."
    assert run(*LOGGED) == (2, "", f"lowland: {said}\n")
    assert not Path("a").exists()


def test_a_dry_run_has_no_log(run) -> None:
    code, _, err = run(*TINY, "--dry_run", "--log=tensorboard")
    assert code == 2
    assert err == "lowland: log must be left out for a dry run, which writes nothing, got tensorboard.\n"


def test_a_number_that_is_none_is_not_drawn() -> None:
    row = {"step": 1, "full": True, "train_loss": float("nan"), "test_loss": None, "test_error": 0.5}
    assert list(tensorboard.scalars(row)) == [("test/error", 0.5)]
