"""A command that several processes carry out together speaks with one voice."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lowland.cli.interrupts import INTERRUPTED
from lowland.deep.processes import ProcessLost, is_lost, joined, ranks
from lowland.errors import InputError, in_one_line

_LOST = "another process has ended before its work was done, so this one ends too."


def in_one_voice(work: Callable[[], int]) -> int:
    """The exit code of ``work``, in each of the processes that ``torchrun`` started, or in the only one.

    The first process prints. What goes wrong in all is said once, by the process that is the first to.

    Args:
        work: What each does.
    """
    with joined() as speaks:
        if not ranks().several:
            return work()
        with contextlib.nullcontext() if ranks().is_first else _silent():
            return _carried_out(work, speaks)


def _carried_out(work: Callable[[], int], speaks: Callable[[], bool]) -> int:
    try:
        return work()
    except (InputError, OSError, MemoryError):
        if speaks():
            raise
        return 2
    except KeyboardInterrupt:
        if speaks():
            raise
        return INTERRUPTED
    except RuntimeError as error:
        if not (isinstance(error, ProcessLost) or is_lost(error)):
            raise
        if speaks():
            told = error if isinstance(error, ProcessLost) else _LOST
            print(f"lowland: {in_one_line(told)}", file=sys.stderr, flush=True)
        return 1


@contextmanager
def _silent() -> Iterator[None]:
    """What the process prints, and what it warns of, is what the first one does."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123 -- of every system
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
