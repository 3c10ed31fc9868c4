"""Many small jobs at once."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from lowland.errors import InputError

Outcome = TypeVar("Outcome")


_MOST = 1024
"""The processors of the largest machines; a hundred times as many end the process in the runtime of torch."""


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
) -> list[Outcome]:
    """What each job returns, in the order of ``jobs``.

    Args:
        jobs: Functions without arguments that release Python's lock while they work.
        threads: Jobs at a time; ``None`` for one per core.
        on_done: Called with a job's index as soon as it has ended.

    Raises:
        InputError: If ``threads`` is not positive or more than any machine has.
        Exception: What a job raised; those that have not begun are then left out.
    """
    require_threads(threads)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        futures = {pool.submit(job): index for index, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                future.result()
                if on_done is not None:
                    on_done(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
