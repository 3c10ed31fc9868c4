"""``lowland train`` by several processes: what is said, and by whom; stops, kills, and what goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lowland.cli import main

ROOT = Path(__file__).parents[2]
LIMIT = 240
"""Seconds after which processes that wait for one another are said to hang."""
pytestmark = pytest.mark.slow

TRAIN = [
    "train",
    "--model",
    "fc",
    "--model_width",
    "16",
    "--frac_train",
    "0.1",
    "--sam_rho",
    "0.05",
    "--m",
    "8",
]
TRAIN += ["--batch_size", "32", "--dtype", "float64", "--lr_max", "0.01", "--device", "cpu", "--epochs"]


def environment(**more):
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more


def started(words, size=2):
    """Processes as torchrun starts them, one of which the test can reach."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "lowland", *words],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **meeting),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes):
    """Exit codes, outputs and errors."""
    try:
        said = [process.communicate(timeout=LIMIT) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"processes hang: {[rank for rank, p in enumerate(processes) if p.poll() is None]}")
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], *map(list, zip(*said, strict=True))


def await_checkpoint(path, processes):
    deadline = time.monotonic() + LIMIT
    while not (path / "checkpoint" / "state.safetensors").exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.05)


def done(command):
    found = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert found.returncode == 0, found.stderr
    return found


def alone(words):
    return done([sys.executable, "-m", "lowland", *words])


def timeless(text):
    return [line.partition(" examples/s")[0].rpartition("%")[0] for line in text.splitlines()]


def largest_difference(one, other):
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


@pytest.mark.stress
def test_torchrun_trains_one_run_and_one_process_speaks(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # After -- torchrun leaves --m alone, which might be short for several of its own options.
    words = [*command, "-m", "lowland", "--", *TRAIN, "2", "--out", str(tmp_path / "several")]
    several, before = done(words), alone([*TRAIN, "2", "--out", str(tmp_path / "alone")])
    assert timeless(several.stdout) == timeless(before.stdout)
    assert largest_difference(tmp_path / "several", tmp_path / "alone") < 1e-10
    rows = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("several", "alone")]
    errors = [[{k: v for k, v in json.loads(r).items() if "error" in k} for r in of_run] for of_run in rows]
    assert errors[0] == errors[1]


@pytest.mark.stress
def test_a_run_stops_by_a_signal_to_any_process_goes_on_ends_with_one_and_goes_on_alone(tmp_path):
    path = tmp_path / "run"
    processes = started([*TRAIN, "40", "--checkpoint_every", "1e-9", "--out", str(path)])
    await_checkpoint(path, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs, errors = ended(processes)
    resuming = f"torchrun --nproc_per_node 2 -m lowland train --resume {path}"
    assert codes == [130, 130]
    assert errors == [f"stopped; continue with: {resuming}\n", ""]
    assert outputs[1] == ""

    before = (path / "checkpoint" / "state.safetensors").stat().st_mtime_ns
    processes = started(["train", "--resume", str(path), "--checkpoint_every", "1e-9"])
    while (path / "checkpoint" / "state.safetensors").stat().st_mtime_ns == before:
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.02)
    processes[1].kill()
    codes, _, errors = ended(processes)
    assert codes == [1, -signal.SIGKILL]
    assert errors[0] == (
        f"lowland: another process of this run has ended before it did; continue with: {resuming}\n"
    )

    alone(["train", "--resume", str(path)])
    alone([*TRAIN, "40", "--out", str(tmp_path / "alone")])
    assert largest_difference(path, tmp_path / "alone") < 1e-10


def test_a_refusal_is_one_sentence_and_ends_all(tmp_path):
    (tmp_path / "file").touch()
    codes, _, errors = ended(started([*TRAIN, "1", "--out", str(tmp_path)]))
    assert codes == [2, 2]
    (said,) = filter(None, errors)
    assert said.startswith("lowland: ")
    assert said.endswith("must be a new or empty directory, or a run; it holds other files.\n")


def test_processes_that_cannot_meet_are_told_what_starts_them(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert main([*TRAIN, "1", "--dry_run"]) == 2
    assert capsys.readouterr().err == (
        "lowland: several processes (WORLD_SIZE=2) must be started by torchrun, which sets RANK.\n"
    )


def test_other_commands_are_not_carried_out_once_by_each_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["runs", "list"]) == 2
    assert capsys.readouterr().err == (
        "lowland: the command must be train to be started by torchrun as several processes, got runs.\n"
    )
