"""What the tests of the commands share."""

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
