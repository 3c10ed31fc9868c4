"""Finds the command, and turns its errors into one sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from lowland.cli.interrupts import INTERRUPTED, end_interrupted, interruptible, say_interrupted
from lowland.cli.legible import legible_streams
from lowland.errors import InputError, in_one_line, one_of

_COMMANDS = {
    "train": "train a network with SAM or without",
    "sweep": "train for every combination of options, on one machine or many",
    "runs": "list, show and compare runs",
    "sharpness": "how flat trained networks are: worst case, average, curvature",
    "landscape": "the loss around and between trained networks",
    "diagonal": "diagonal linear networks: GD and SAM with every m, Theorem 1",
    "relu": "one-hidden-layer ReLU networks: GD and SAM, and their kinks",
    "theorem2": "convergence of unnormalized m-SAM, against its bound",
    "figure": "a figure of the paper: its runs, its picture, and what agrees",
    "report": "figures and runs gathered into one page",
    "demo": "a few short runs, one table, one picture",
    "env": "versions, threads, devices and paths, for a bug report",
}
_USAGE = "\n".join(
    [
        "usage: lowland COMMAND [--help] ...",
        "",
        "Sharpness-aware minimization: train networks into low, flat land.",
        "",
        *(f"  {name:<10}{purpose}" for name, purpose in _COMMANDS.items()),
        "",
        "lowland COMMAND --help lists a command's options.",
        "lowland --version prints the version.",
    ]
)


_UNREAD = 141
"""What a shell says of other programs whose output nobody reads any longer."""


def as_program() -> NoReturn:
    """Runs the command that the process was called with, and ends the process: see :func:`answered`."""
    code = answered(sys.argv[1:], working=interruptible)
    if code == INTERRUPTED:
        end_interrupted()
    if code == _UNREAD:  # nor does Python say what it could not print at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def answered(
    words: Sequence[str], *, working: Callable[[], AbstractContextManager[None]] = nullcontext
) -> int:
    """Runs one command; its errors become a sentence, and an exit code.

    Args:
        words: The command and its options.
        working: What surrounds the command's work, once its modules are imported.
    """
    with legible_streams():
        try:
            try:
                return _done(words, working)
            finally:
                sys.stdout.flush()
        except InputError as error:
            print(f"lowland: {in_one_line(error)}", file=sys.stderr)
            return 2
        except BrokenPipeError:
            return _UNREAD
        except OSError as error:
            print(f"lowland: {in_one_line(_sentence(error))}", file=sys.stderr)
            return 2
        except MemoryError as error:
            reason = f": {in_one_line(error)}" if str(error) else ""
            print(f"lowland: there must be memory for what is asked{reason.rstrip('.')}.", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            say_interrupted()
            return INTERRUPTED


def _done(words: Sequence[str], working: Callable[[], AbstractContextManager[None]]) -> int:
    if not words or words[0] in {"-h", "--help"}:
        print(_USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        from lowland import __version__

        print(f"lowland {__version__}")
        return 0
    one_of("command", words[0], _COMMANDS)
    of_several = os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" in os.environ
    if of_several and words[0] != "train":
        raise InputError(
            f"the command must be train to be started by torchrun as several processes, got {words[0]}."
        )
    module = importlib.import_module(f"lowland.cli.{words[0]}")
    with working():
        code: int = module.run(words[1:])
    return code


def _sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"a file could not be read or written: {where}{error.strerror or error}."
