"""Damaged files and words of all kinds are read, or refused in one sentence: samples of scripts that fuzz."""

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
def test_no_damaged_file_gives_a_traceback_but_an_error_of_our_own_does(tmp_path) -> None:
    done = ran(tmp_path, "fuzz.py", "--count", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    planted = ran(tmp_path, "fuzz.py", "--count", "5", "--only", "env.json", "--plant")
    assert planted.returncode == 1
    assert "AttributeError: " in planted.stderr


def test_no_words_give_a_traceback_but_an_error_of_our_own_does(tmp_path) -> None:
    done = ran(tmp_path, "fuzz_command_line.py", "--count", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^all +132 inputs .* 0 traceback +0 hang +0 crash$", done.stdout, re.MULTILINE)
    planted = ran(tmp_path, "fuzz_command_line.py", "--count", "12", "--only", "diagonal", "--plant")
    assert planted.returncode == 1
    assert "AttributeError: planted" in planted.stderr
