"""A run that is killed again and again is the run that was never killed."""

import re

import pytest


@pytest.mark.stress
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(script) -> None:
    kills = ("--kills", "3", "--seed", "1", "--checkpoint-every", "0.05")
    small = ("--epochs", "4", "--frac_train", "0.2", "--model_width", "2", "--batch_size", "64")
    done = script("kill_and_resume.py", *kills, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 3 kills" in done.stdout
    assert done.stdout.endswith("weights and metrics are identical\n")


@pytest.mark.stress
@pytest.mark.parametrize(
    ("words", "last"),
    [
        (("--every", "13"), r"\d+ of \d\d+ kill points, 0 bad"),
        (("--flips", "30"), r"30 bits of the data of model\.safetensors: 0 accepted"),
        (("--full-disk",), "8 sizes, 0 bad"),
    ],
)
def test_a_run_that_is_killed_at_a_file_lacks_room_or_loses_a_bit_goes_on_or_is_refused(
    script, words, last
) -> None:
    done = script("kill_points.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(last, done.stdout.splitlines()[-1])
