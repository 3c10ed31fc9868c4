"""Many small jobs at once."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from lowland.errors import InputError

Outcome = TypeVar("Outcome")
_End = tuple[int, Callable[[], Outcome]]
"""Which job has ended, and what returns or raises what it did."""

_MOST = 1024
"""The processors of the largest machines; a hundred times as many end the process in the runtime of torch."""
_POLL = 0.2
_PIECE = 30_000_000
"""Multiplications that take about a twentieth of a second."""
_HERE = threading.local()


def require_threads(threads: int | None) -> None:
    """Raises :class:`InputError` for a number of threads that no machine has."""
    if threads is not None and threads < 1:
        raise InputError(f"threads must be positive, got {threads}.")
    if threads is not None and threads > _MOST:
        raise InputError(f"threads must be at most {_MOST}, got {threads}.")


def in_threads(
    jobs: Sequence[Callable[[], Outcome]],
    *,
    threads: int | None = None,
    on_done: Callable[[int], object] | None = None,
    on_wait: Callable[[], object] | None = None,
) -> list[Outcome]:
    """What each job returns, in the order of ``jobs``.

    Where this is left by an exception, as by Ctrl-C, the jobs that have not begun are left out, and those
    that run are given up: nobody waits for them, and they end at their next piece (see :func:`in_pieces`).

    Args:
        jobs: Functions without arguments that release Python's lock while they work.
        threads: Jobs at a time; ``None`` for one per core.
        on_done: Called with a job's index as soon as it has ended.
        on_wait: Called several times a second; an exception that it raises ends this.

    Raises:
        InputError: If ``threads`` is not positive or more than any machine has.
        Exception: What a job raised, or ``on_wait``.
    """
    require_threads(threads)
    given_up = threading.Event()
    waiting, ended = deque(enumerate(jobs)), SimpleQueue[_End[Outcome]]()
    for _ in range(min(threads or os.cpu_count() or 1, len(jobs))):
        threading.Thread(target=_work, args=(waiting, ended, given_up), daemon=True).start()
    outcomes: dict[int, Outcome] = {}
    try:
        while len(outcomes) < len(jobs):
            if on_wait is not None:
                on_wait()
            with suppress(Empty):
                index, result = ended.get(timeout=_POLL)
                outcomes[index] = result()
                if on_done is not None:
                    on_done(index)
    finally:
        given_up.set()
    return [outcomes[index] for index in range(len(jobs))]


def in_pieces(steps: int, *, cost: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each piece of ``steps``, a small part of a second each.

    Between two of them Python hears Ctrl-C, and a job of :func:`in_threads` that was given up ends.

    Args:
        steps: How many.
        cost: Multiplications of a step, about.
    """
    size = max(1, _PIECE // max(cost, 1))
    for begin in range(0, steps, size):
        end_if_given_up()
        yield begin, min(begin + size, steps)


def end_if_given_up() -> None:
    """Ends the job of :func:`in_threads` that calls this, if nobody waits for it any longer."""
    given_up: threading.Event | None = getattr(_HERE, "given_up", None)
    if given_up is not None and given_up.is_set():
        raise _GivenUp


class _GivenUp(Exception):  # nothing went wrong
    """Nobody waits for this job."""


def _work(
    waiting: deque[tuple[int, Callable[[], Outcome]]],
    ended: SimpleQueue[_End[Outcome]],
    given_up: threading.Event,
) -> None:
    """Does jobs until there are no more."""
    _HERE.given_up = given_up
    while waiting and not given_up.is_set():
        try:
            index, job = waiting.popleft()
        except IndexError:  # another thread took the last one
            return
        ended.put((index, _attempted(job)))


def _attempted(job: Callable[[], Outcome]) -> Callable[[], Outcome]:
    """A function that returns what the job returned, or raises what it raised."""
    try:
        outcome = job()
    except BaseException as error:
        failure = error
    else:
        return lambda: outcome

    def fail() -> Outcome:
        raise failure

    return fail
