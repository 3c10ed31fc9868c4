"""Ctrl-C interrupts a command, or asks a run to stop after the step it is in."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Not every system has the last one."""

INTERRUPTED = 130
_PATIENCE = 1.5
"""Seconds that an interrupted command may take to put things in order; its files are whole at any moment."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block SIGINT raises ``KeyboardInterrupt``, and so does whatever that became on its way.

    A second SIGINT ends the process at once, and so does the first if it is lost or not heeded for some time.
    """
    came = False

    def interrupt(*_: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        limit = threading.Timer(_PATIENCE, _give_up)
        limit.daemon = True
        limit.start()
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:  # ignored, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    before, sys.unraisablehook = sys.unraisablehook, _without_interrupts(sys.unraisablehook)
    try:
        yield
    except BaseException:
        if came:  # by now it may be an ImportError
            raise KeyboardInterrupt from None
        raise
    finally:
        sys.unraisablehook = before
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if came:  # lost on its way
        raise KeyboardInterrupt


def say_interrupted() -> None:
    """One line, for whoever may still read it."""
    with contextlib.suppress(OSError):
        print("lowland: interrupted.", file=sys.stderr, flush=True)


def end_interrupted() -> NoReturn:
    """Ends the process without what Python does then: modules that are half imported do not survive it."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(INTERRUPTED)


def _give_up() -> None:
    say_interrupted()
    end_interrupted()


def _without_interrupts(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Says nothing of interrupts that came where no exception can be raised: in a destructor."""

    def quiet(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)

    return quiet


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT, SIGTERM or SIGHUP came inside the block.

    A second SIGINT does what it would without, and so does the first before that function is called once:
    data are still being read, and there is nothing to stop at. What is ignored, as SIGHUP is under
    ``nohup``, stays so.
    """
    asked = begun = False
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if number == signal.SIGINT and (asked or not begun):
            signal.signal(number, before[number])
            signal.raise_signal(number)
            return
        asked = True
        if number == getattr(signal, "SIGHUP", None):
            _send_nowhere(terminals)

    def should_stop() -> bool:
        nonlocal begun
        begun = True
        return asked

    numbers = [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in heard}
    try:
        for number in heard:
            signal.signal(number, ask)
        yield should_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send_nowhere(descriptors: list[int]) -> None:
    """A terminal that is gone takes no more output; to write to it would fail before the run is kept."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
