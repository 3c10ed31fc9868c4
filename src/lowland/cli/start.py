"""The first lines of the program, which import next to nothing: Ctrl-C is heard from the first moment."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Its words. Without them this is the program: the words are the process's own, and so are Ctrl-C
            and the end of the process.

    Returns:
        0, or 2 after wrong input, 130 after an interrupt.
    """
    if argv is None:
        _end_at_once()
    from lowland.cli import command

    return command.as_program() if argv is None else command.answered(argv)


def _end_at_once() -> None:
    """From here on SIGINT ends the process without a word, as the system has it; ignored, it stays so.

    While modules are imported nothing of the user's is open, and an exception would be raised wherever they
    are: compiled ones turn it into errors of their own, or lose it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
