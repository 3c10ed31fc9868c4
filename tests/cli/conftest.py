"""What the tests of the commands share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowland.cli import main


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs ``lowland`` in an empty folder; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOWLAND_DATA", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def script(tmp_path):
    """Runs a script of ``benchmarks/``, with a cache of its own."""

    def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(Path(__file__).parents[2] / "benchmarks" / name), *words],
            env={**os.environ, "LOWLAND_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    return script
