"""Damaged files and words of all kinds are read, or refused in one sentence: samples of scripts that fuzz."""

import re

import pytest


@pytest.mark.stress
def test_no_damaged_file_gives_a_traceback_but_an_error_of_our_own_does(script) -> None:
    done = script("fuzz.py", "--count", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    planted = script("fuzz.py", "--count", "5", "--only", "env.json", "--plant")
    assert planted.returncode == 1
    assert "AttributeError: " in planted.stderr


def test_no_words_give_a_traceback_but_an_error_of_our_own_does(script) -> None:
    done = script("fuzz_command_line.py", "--count", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^all +144 inputs .* 0 traceback +0 hang +0 crash$", done.stdout, re.MULTILINE)
    planted = script("fuzz_command_line.py", "--count", "12", "--only", "diagonal", "--plant")
    assert planted.returncode == 1
    assert "AttributeError: planted" in planted.stderr
