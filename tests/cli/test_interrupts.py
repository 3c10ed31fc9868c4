"""What ends a run softly: Ctrl-C, a request to terminate, a terminal that is closed."""

import os
import pty
import shlex
import signal
import subprocess
import sys
import threading

import pytest

from lowland.cli.interrupts import stop_on_signals
from lowland.deep import Control, Interrupted, Place, TrainConfig, launch
from lowland.runs import Run

CONFIG = TrainConfig(frac_train=0.2, model="linear", epochs=400, batch_size=32)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_stops_a_run_at_a_checkpoint_from_which_it_goes_on(tmp_path, name) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    sent = threading.Event()

    def should_stop() -> bool:
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), number)
        return asked()

    with stop_on_signals() as asked, pytest.raises(Interrupted):
        launch(CONFIG, tmp_path / "x", Place("cpu", threads=1), Control(should_stop=should_stop))
    assert signal.getsignal(number) is before
    assert Run.open(tmp_path / "x").checkpoint_path.is_file()


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
