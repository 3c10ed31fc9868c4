"""Ctrl-C asks a run to stop after the step it is in, and so does a terminal that is closed."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Not every system has the last one."""


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT, SIGTERM or SIGHUP came inside the block.

    A second SIGINT interrupts. What is ignored, as SIGHUP is under ``nohup``, stays so.
    """
    asked = False
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        if number == getattr(signal, "SIGHUP", None):
            _send_nowhere(terminals)

    numbers = [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send_nowhere(descriptors: list[int]) -> None:
    """A terminal that is gone takes no more output; to write to it would fail before the run is kept."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
