"""A run that is killed again and again is the run that was never killed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def ran(tmp_path: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *words],
        env={**os.environ, "LOWLAND_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path) -> None:
    words = ("--kills", "3", "--seed", "1", "--checkpoint-every", "0.2")
    done = ran(tmp_path, "kill_and_resume.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 3 kills" in done.stdout
    assert done.stdout.endswith("weights and metrics are identical\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "last"),
    [
        (("--every", "13"), r"\d+ of \d\d+ kill points, 0 bad"),
        (("--flips", "30"), r"30 bits of the data of model\.safetensors: 0 accepted"),
        (("--full-disk",), "8 sizes, 0 bad"),
    ],
)
def test_a_run_that_is_killed_at_a_file_lacks_room_or_loses_a_bit_goes_on_or_is_refused(
    tmp_path, words, last
) -> None:
    done = ran(tmp_path, "kill_points.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(last, done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_no_damaged_file_gives_a_traceback_but_an_error_of_our_own_does(tmp_path) -> None:
    done = ran(tmp_path, "fuzz.py", "--count", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    planted = ran(tmp_path, "fuzz.py", "--count", "5", "--only", "env.json", "--plant")
    assert planted.returncode == 1
    assert "AttributeError: " in planted.stderr


def test_no_words_give_a_traceback_but_an_error_of_our_own_does(tmp_path) -> None:
    done = ran(tmp_path, "fuzz_command_line.py", "--count", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^all +120 inputs .* 0 traceback +0 hang +0 crash$", done.stdout, re.MULTILINE)
    planted = ran(tmp_path, "fuzz_command_line.py", "--count", "12", "--only", "diagonal", "--plant")
    assert planted.returncode == 1
    assert "AttributeError: planted" in planted.stderr
