"""Pictures: as they were written, or drawn from data."""

import shutil
import urllib.parse
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lowland.cli import main
from lowland.errors import InputError
from lowland.report import gathered, page
from lowland.report.pictures import data_url
from report.parsed import Parsed

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "figures"


def test_a_figure_of_the_paper_is_drawn_from_its_data(tmp_path) -> None:
    folder = tmp_path / "theory-quick"
    shutil.copytree(RESULTS / "theory-quick", folder, ignore=shutil.ignore_patterns("figure.svg"))
    (figure,) = gathered([tmp_path]).figures
    assert "ρΔ along the trajectory" in figure.svg.decode()
    (folder / "figure.svg").write_bytes(b"<svg/>")
    (figure,) = gathered([tmp_path]).figures
    assert figure.svg == b"<svg/>", "what was written is shown as it was written"


def test_a_figure_that_is_not_known_must_have_its_picture(out, tmp_path) -> None:
    shutil.copytree(out / "made-up-quick", tmp_path / "it")
    (tmp_path / "it" / "figure.svg").unlink()
    with pytest.raises(InputError, match=r"must have a figure.svg, or data of a figure .* got made-up\."):
        gathered([tmp_path])


def test_a_sweep_is_drawn_from_its_data_and_its_runs_are_own_ones(tmp_path, capsys) -> None:
    words = [
        "--model",
        "fc",
        "--model_width",
        "8",
        "--epochs",
        "1",
        "--sam_rho",
        "0.1",
        "--sam_iters",
        "1",
        "2",
        "--seeds",
        "2",
    ]
    assert main(["sweep", *words, "--engine", "here", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    (sweep,) = (tmp_path / "out").glob("sweep-*")
    (sweep / "figure.svg").unlink()
    found = gathered([tmp_path / "out"])
    assert (len(found.figures), len(found.sweeps), len(found.runs)) == (0, 1, 4)
    assert "sam_iters" in found.sweeps[0].svg.decode()
    text = page(found)
    assert "Andriushchenko" not in text
    assert "test error by sam_iters" in "".join(Parsed(text).texts["nav"])
    alone = gathered([sweep])
    assert {run.name for run in alone.runs} == {run.name for run in found.runs}
    assert Parsed(page(alone)).boards == {}, "curves are not in a sweep's own files"


SVG = """<svg xmlns="http://www.w3.org/2000/svg">
  <g transform="scale(0.015625)"><path id="a" d="M 1.23456 7.000001
 L 2 3"/></g><text style="font: 9px 'DejaVu Sans'">50 % &amp; #1</text></svg>"""


def test_a_picture_in_an_address_is_the_same_picture() -> None:
    url = data_url(SVG.encode())
    assert not set("'&<>#") & set(url)
    back = urllib.parse.unquote(url.removeprefix("data:image/svg+xml,"))
    root = ElementTree.fromstring(back)
    (path,) = root.iter("{http://www.w3.org/2000/svg}path")
    assert path.get("d") == "M 1.23 7.00 L 2 3"
    assert "scale(0.015625)" in back, "a small factor is not rounded away"
    assert "50 % &amp; #1" in back


def test_a_picture_with_a_script_is_an_image_all_the_same(out, tmp_path) -> None:
    shutil.copytree(out / "made-up-quick", tmp_path / "it")
    evil = "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(3)'><script>alert(3)</script></svg>"
    (tmp_path / "it" / "figure.svg").write_text(evil)
    text = page(gathered([tmp_path]))
    assert "<script>alert" not in text
    assert [a.get("onload") for a in Parsed(text).all("img")] == [None, None]
