"""What mypy says of the package, and of code that uses it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def checked(*words: str) -> subprocess.CompletedProcess[str]:
    """mypy as ``pyproject.toml`` has it; what it knows of the package is kept for the next time."""
    command = [sys.executable, "-m", "mypy", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_package_has_the_types_that_it_says() -> None:
    found = checked()
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith("Success: no issues found in ")


SNIPPET = """
import torch
from lowland import SAM, L2, presets
from lowland.sharpness import worst_case
model = torch.nn.Linear(2, 1)
presets.asam(model, rho=0.5, m=4, engine="loop")
presets.asam(model, rho=0.5, enginee="loop")
presets.asam(model, rho=0.5, ascent=L2())
presets.m_sam(model, l2="0.1")
SAM(model, rho=0.1, mm=3)
SAM(model, 0.1)
worst_case(lambda x: x, [], (), rho=0.1, norms="l2")
worst_case(lambda x: x, [], (), rho=0.1, norm="linf")
"""


def test_the_options_of_presets_and_searches_are_checked(tmp_path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    found = checked(str(file))
    lines = sorted({int(line.split(":")[1]) for line in found.stdout.splitlines() if "snippet.py:" in line})
    assert lines == [7, 8, 9, 10, 11, 12], found.stdout
