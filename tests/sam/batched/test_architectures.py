"""A sample of ``benchmarks/architectures.py``: run at once and exact, or refused for the known cause."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("diffusers")
ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "benchmarks"))

from architectures import measured  # noqa: E402
from tiny_models import ARCHITECTURES  # noqa: E402

SAMPLE = [
    ("llama", "sdpa"),
    ("t5", "sdpa"),
    ("modernbert", "sdpa"),
    ("segformer", "sdpa"),
    ("mixtral", "sdpa"),
    ("mixtral, experts in turn", "sdpa"),
    ("bloom", "eager"),
    ("DiT", "sdpa"),
]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, while a model is made


@pytest.mark.parametrize(("name", "attention"), SAMPLE)
def test_row_of_the_table_is_as_it_must_be(name, attention):
    """The script compares with a plain loop of its own, counts calls of the loss and listens to warnings."""
    architecture = ARCHITECTURES[name]
    row = measured(architecture, attention, rounds=0)
    assert row.wrong(architecture) == ""
    assert row.engine == ("loop" if architecture.refused else "at once")


def test_the_published_table_has_every_row_as_the_script_demands_it():
    lines = (ROOT / "docs" / "architectures.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    found = {(name, attention): (engine, float(error)) for name, attention, engine, _, error, *_ in rows}
    expected = {
        (name, attention): "loop" if architecture.refused else "at once"
        for name, architecture in ARCHITECTURES.items()
        for attention in architecture.attentions
    }
    assert {key: engine for key, (engine, _) in found.items()} == expected
    assert all(error <= ARCHITECTURES[name].most_error for (name, _), (_, error) in found.items())
    assert [row[-1].startswith(ARCHITECTURES[row[0]].refused) for row in rows] == [True] * len(rows)


def test_a_row_that_is_not_as_it_must_be_is_told():
    architecture = ARCHITECTURES["DiT"]
    row = measured(architecture, "eager", rounds=0)
    wrong = {
        "error must be at most 1e-10, got 1.0e-03": replace(row, error=1e-3),
        "error must be at most 1e-10, got nan": replace(row, error=float("nan")),
        "cause must be 'none', got 'a mask'": replace(row, refused="a mask"),
        "there must be no warning, got 'odd'": replace(row, warned=("odd",)),
        "calls must be at most 5, got 16": replace(row, calls=16),
    }
    assert {row.wrong(architecture): row for row in wrong.values()} == wrong
