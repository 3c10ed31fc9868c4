"""What ends a run softly: Ctrl-C, a request to terminate, a terminal that is closed."""

import dataclasses
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from lowland.cli.interrupts import stop_on_signals
from lowland.deep import Control, Interrupted, Place, TrainConfig, launch
from lowland.runs import Run

CONFIG = TrainConfig(frac_train=0.2, model="linear", epochs=400, batch_size=32)


@pytest.fixture(autouse=True)
def heeded():
    """A shell that runs tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_stops_a_run_at_a_checkpoint_from_which_it_goes_on(tmp_path, name) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    sent = threading.Event()

    def should_stop() -> bool:
        asked()
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), number)
        return asked()

    with stop_on_signals() as asked, pytest.raises(Interrupted):
        launch(CONFIG, tmp_path / "x", Place("cpu", threads=1), Control(should_stop=should_stop))
    assert signal.getsignal(number) is before
    assert Run.open(tmp_path / "x").checkpoint_path.is_file()


def test_ctrl_c_before_a_run_can_stop_interrupts_it() -> None:
    """Data are read then, which may take minutes."""
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_before_a_run_can_stop_are_kept_for_it(name) -> None:
    with stop_on_signals() as asked:
        signal.raise_signal(getattr(signal, name))
        assert asked()


LOADING = """
import os, signal, sys, time
from lowland.cli import main, train
def load_data(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(3600)
sys.modules["lowland.deep.launch"].load_data = load_data
sys.argv = ["lowland", "train", "--model=fc", "--epochs=1", "--out", "x"]
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def test_ctrl_c_while_data_are_read_ends_the_command_and_leaves_nothing(tmp_path) -> None:
    command = [sys.executable, "-c", LOADING]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (130, "lowland: interrupted.\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stop_on_signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_terminal_is_closed_leaves_a_checkpoint(tmp_path) -> None:
    words = "--frac_train 0.2 --model linear --batch_size 32 --epochs 100000 --checkpoint_every 100000"
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "lowland", "train", *shlex.split(words)]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "x")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        seen = b""
        while b"epoch" not in seen:  # its progress, at the first step or later
            seen += os.read(master, 4096)
        os.close(master)
        assert process.wait(timeout=300) in (130, 2)
    finally:
        process.kill()
    assert (tmp_path / "x" / "checkpoint" / "state.safetensors").is_file()


LONG = {
    "diagonal --steps 400000000": "x/.lock",
    "diagonal --steps 400000000 --kernel algebraic --threads 1": "x/.lock",
    "relu --steps 100000000 --stop_loss 0": "x/.lock",
    "theorem2 --steps 100000000": "x/.lock",
    "landscape a --points 2000 --device cpu": "x/metrics.jsonl",
    "sharpness a --steps 100000 --m 1 2 --rho 0.1 --n_eval 512 --device cpu": "running",
    "figure fig6 --scale paper --jobs 1": "x/runs/*/.lock",
    "figure fig6 --scale paper --engine here": "x/runs/*/.lock",
    "demo --seeds 50": "x/*/metrics.jsonl",
}
"""Commands that take hours, and the file that tells that one has begun."""

SECOND = {"diagonal --steps 400000000", "figure fig6 --scale paper --engine here", "demo --seeds 50"}
"""Commands of which another one is a sample too."""

RUNNING = """
import sys, pathlib, lowland.cli.sharpness as command
measures = command.measures
def told(*words, **named):
    pathlib.Path("running").touch()
    return measures(*words, **named)
command.measures = told
from lowland.cli import main
sys.argv = ["lowland", *sys.argv[1:]]
sys.exit(main())
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    launch(dataclasses.replace(CONFIG, epochs=1), folder / "a", Place("cpu", threads=1), Control())
    return folder / "a"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=pytest.mark.stress) if words in SECOND else words for words in LONG]
)
def test_every_command_ends_at_ctrl_c_and_leaves_nothing_half_written(tmp_path, trained, words) -> None:
    shutil.copytree(trained, tmp_path / "a")
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNING, *shlex.split(words), "--out", "x"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not list(tmp_path.glob(LONG[words])) and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all processes of the command
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == ("" if "stopped" in out else "lowland: interrupted.\n")
    assert not list(tmp_path.rglob("*.tmp"))
    for lock in tmp_path.rglob(".lock"):
        with Run(lock.parent).locked():
            pass
