"""A sample of ``benchmarks/faults.py``: whatever is struck, the world is that before or after the call."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def swept(*options, ends_with=(0,)):
    """The script's words, and the number of faults."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--once", *" ".join(options).split()],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode in ends_with, said
    (counts,) = re.findall(r"^(\d+) faults: (\d+) as before, (\d+) as after, (\d+) bad$", said, re.MULTILINE)
    return said, [int(count) for count in counts]


@pytest.mark.slow
def test_a_fault_at_any_line_of_the_loop_leaves_the_world_before_or_after_the_call():
    said, (faults, before, after, bad) = swept(
        "--presets sam --engines loop --m 0 --variants first --places lines",
        "--kinds error sigint interrupt --sample 6",
    )
    assert faults > 50, said
    assert before > after > 0, said
    assert bad == 0, said


@pytest.mark.stress
def test_a_fault_anywhere_in_any_engine_leaves_the_world_before_or_after_the_call():
    said, (faults, _, _, bad) = swept(
        "--presets sam wsam_decoupled friendly_sam look_sam bsam --engines loop batched --m 2",
        "--variants later hooked autocast accumulated --kinds error sigint interrupt --sample 151",
    )
    assert faults > 100, said
    assert bad == 0, said


@pytest.mark.slow
def test_a_mistake_inside_lowland_comes_out_as_itself_from_every_engine():
    said, (faults, *_) = swept(
        "--presets sam --engines loop batched auto --m 2 --variants first --places lines",
        "--kinds mistake --sample 45",
        ends_with=(0, 1),  # what a fault leaves behind is the other tests'
    )
    assert faults > 40, said
    assert "the fault became" not in said, said
    assert "swallowed" not in said, said
