"""Several processes train as one would: gloo on this machine, 2 and 4 processes against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .several_work import BY_FOUR, CONFIGS, REFUSED

pytestmark = pytest.mark.slow

SIZES = (1, 2, 4)
LIMIT = 400
"""Seconds after which processes that wait for one another are said to hang."""
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-10
CASES = [(2, name) for name in (*CONFIGS, "resumed")] + [(4, name) for name in (*BY_FOUR, "resumed")]


def environment(**more):
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every process of one, two and four found, by their number and its rank."""
    folder = tmp_path_factory.mktemp("several")
    processes = {}
    for size in SIZES:
        (folder / str(size)).mkdir()
        for rank in range(size):
            command = [sys.executable, "-W", "ignore", "-m", "tests.deep.several_work", str(rank), str(size)]
            processes[size, rank] = subprocess.Popen(
                [*command, str(folder)],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
    try:
        outputs = {key: process.communicate(timeout=LIMIT)[0] for key, process in processes.items()}
    except subprocess.TimeoutExpired:
        waiting = [key for key, process in processes.items() if process.poll() is None]
        pytest.fail(f"processes hang, (of how many, rank): {waiting}")
    finally:
        for process in processes.values():
            process.kill()
    failed = [key for key, process in processes.items() if process.returncode]
    assert not failed, "\n".join(outputs[key] for key in failed)
    return {(size, rank): torch.load(folder / f"found-{size}-{rank}") for size, rank in processes}


def differences(one, other):
    """The largest of weights and buffers, relative to each tensor's norm, and of the rows of the metrics."""
    assert one["own"].keys() == other["own"].keys()
    assert len(one["rows"]) == len(other["rows"])
    states = max(
        ((a - b).double().norm() / a.double().norm().clamp_min(1.0)).item()
        for a, b in zip(one["own"].values(), other["own"].values(), strict=True)
    )
    rows = [(a, b) for a, b in zip(one["rows"], other["rows"], strict=True)]
    assert all(a.keys() == b.keys() for a, b in rows)
    return states, max(abs(a[name] - b[name]) for a, b in rows for name in a if name != "seconds")


@pytest.mark.parametrize(("size", "name"), CASES)
def test_a_run_does_not_depend_on_the_number_of_processes(found, name, size):
    """Also ``resumed``: each of these runs was begun by another number of processes."""
    for rank in range(size):
        states, rows = differences(found[1, 0][name], found[size, rank][name])
        assert states < TOLERANCE
        assert rows < TOLERANCE
        for row, wanted in zip(found[size, rank][name]["rows"], found[1, 0][name]["rows"], strict=True):
            errors = {key: value for key, value in wanted.items() if key.endswith("_error")}
            assert errors
            assert errors == {key: row[key] for key in errors}


@pytest.mark.parametrize("size", [2, 4])
def test_processes_are_the_same_bit_for_bit(found, size):
    for name in CONFIGS if size == 2 else BY_FOUR:
        first, *others = (found[size, rank][name]["own"] for rank in range(size))
        assert all(torch.equal(first[key], other[key]) for other in others for key in first)


@pytest.mark.parametrize(
    ("name", "two", "four"),
    [
        ("batch norm", [6, 5], [3, 3, 3, 2]),  # groups of 3, 3, 3 and 2
        ("group norm", [6, 6], [2, 4, 2, 4]),  # six groups of two
        ("plain", [5, 6], [2, 3, 3, 3]),  # examples
        ("one climb", [5, 6], [2, 3, 3, 3]),
        ("the batch before", [6, 6], [3, 3, 3, 3]),
    ],
)
def test_each_process_runs_its_share_of_whole_groups_and_no_more(found, name, two, four):
    steps = len(found[1, 0][name]["examples"])
    for shares in (two, four):
        for rank, share in enumerate(shares):
            assert found[len(shares), rank][name]["examples"] == [share] * steps
        assert found[1, 0][name]["examples"] == [sum(shares)] * steps


def test_one_hundred_steps_were_made(found):
    for name in ("batch norm", "group norm"):
        assert len(found[4, 0][name]["examples"]) >= 100


MESSAGES = {
    "too few groups": "m must be at most 3 for 4 processes, each of which trains on whole groups of a batch "
    "of 12, got 9; or there must be at most 2 processes.",
    "batch norm": "batch normalization (layer layer1.0.bn1) must see the whole batch, which 4 processes "
    "share: give m of at most 6, a model with group normalization (resnet18_gn), "
    "freeze_bn_stats, or use one process.",
    "own batch norm": "batch normalization (layer 1) must see the whole batch, which 4 processes share: "
    "give freeze_bn_stats, or use one process.",
    "smallest losses": "loss smallest_k_ce must see the whole batch, which 4 processes share: give m of at "
    "most 3, or use one process.",
    "gradient by inputs": "input_grad_reg_lambda must see the whole batch, which 4 processes share: give m "
    "of at most 3, or use one process.",
    "own loss": "loss tests.deep.several_work:halves must see the whole batch, which 4 processes "
    "share: give m of at most 3, or use one process.",
    "draws": "model tests.deep.several_work:drawing must draw random numbers in layers of "
    "torch.nn.Dropout only, for 4 processes, but something draws others; use one process.",
    "sequence first": "model tests.deep.several_work:turned must draw random numbers in layers of "
    "torch.nn.Dropout only, for 4 processes, but something draws others; use one process.",
    "drawing loss": "loss tests.deep.several_work:noisy must draw random numbers in layers of "
    "torch.nn.Dropout only, for 4 processes, but something draws others; use one process.",
    "buffers": "buffers of model tests.deep.several_work:counting must stay as they are for 4 "
    "processes, unless they are those of batch normalization, but 0.largest moves; use "
    "one process.",
    "cumulative": "momentum of batch normalization (layer 2) must be a number for 4 processes, got "
    "None; or use one process.",
    "the batch before": "batch_size must be a multiple of the 4 processes with sam_use_prev_batch and one "
    "group, got 11; or give m of at most 2.",
    "many": "batch_size must be at least the number of processes, 4, got 3 examples.",
}


@pytest.mark.parametrize("name", [*REFUSED, "many"])
def test_what_several_processes_cannot_do_is_refused(found, name):
    for rank in range(4):
        assert found[4, rank][f"refused: {name}"] == f"InputError: {MESSAGES[name]}"


def test_an_error_of_the_first_process_is_one_of_all(found):
    for rank in range(4):
        assert found[4, rank]["full disk"] == (
            "OSError: [Errno 28] No space left on device: 'state.safetensors'"
        )


def test_one_process_that_is_asked_to_stop_stops_all(found):
    assert all(of_process["stopped"] == "interrupted" for of_process in found.values())
