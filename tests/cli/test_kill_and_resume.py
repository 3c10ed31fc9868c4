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
    kills = ("--kills", "3", "--seed", "1", "--checkpoint-every", "0.05")
    small = ("--epochs", "4", "--frac_train", "0.2", "--model_width", "2", "--batch_size", "64")
    done = ran(tmp_path, "kill_and_resume.py", *kills, *small)
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
