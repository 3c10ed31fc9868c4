"""Many small runs: at once, and in one directory."""

import threading
import time
from pathlib import Path

import pytest

from lowland.errors import InputError
from lowland.runs import read_table
from lowland.runs.threads import in_threads


def test_outcomes_come_in_the_order_of_the_jobs_and_are_told_as_they_end() -> None:
    told: list[int] = []
    fast_was_told = threading.Event()

    def slow() -> str:
        assert fast_was_told.wait(300)
        return "first"

    def tell(index: int) -> None:
        told.append(index)
        fast_was_told.set()

    assert in_threads([slow, lambda: "second"], threads=2, on_done=tell) == ["first", "second"]
    assert told == [1, 0]


def test_an_error_is_raised_and_what_has_not_begun_is_left_out() -> None:
    ran: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError("here")

    def work() -> None:
        ran.append(1)
        time.sleep(0.01)

    with pytest.raises(ZeroDivisionError, match="here"):
        in_threads([fail, *[work] * 300], threads=1)
    assert len(ran) < 300


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_must_be_positive(threads) -> None:
    with pytest.raises(InputError, match=f"threads must be positive, got {threads}."):
        in_threads([], threads=threads)


def test_a_table_that_is_none_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"x.parquet must be a Parquet file"):
        read_table(tmp_path / "x.parquet")
