"""The page: what it is called, what it opens with, and what is in it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from lowland.deep import Control, Place, TrainConfig, launch
from lowland.report import gathered, page
from lowland.report.gathered import FigureFiles, Gathered
from lowland.report.titles import named, title
from lowland.sweeps import Store
from report.conftest import FIGURE, TINY, drawn, tasks
from report.parsed import Parsed


@pytest.fixture(scope="module")
def text(out):
    return page(gathered([out]))


@pytest.fixture(scope="module")
def both(out, own):
    return page(gathered([out, own]))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(both) -> None:
    parsed = Parsed(both)
    for _, attributes in parsed.elements:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in parsed.all("a")} <= set(ids)
    assert not re.search(r"https?://(?!www\.w3\.org)", both)
    assert not re.search(r"@import|url\((?!#|%23)", both)
    assert all(image["alt"] for image in parsed.all("img"))
    fields = {a["id"] for a in parsed.all("input")}
    assert fields == {a["for"] for a in parsed.all("label")}
    assert [tag for tag, _ in parsed.elements if tag in {"header", "nav", "main", "footer"}] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    assert len(parsed.texts["caption"]) == len(parsed.texts["table"])


def test_what_the_user_wrote_is_text(tmp_path, own) -> None:
    evil = "x'><script>alert(2)<"
    shutil.copytree(own / "erm-0", tmp_path / evil)
    text = page(gathered([tmp_path]))
    assert "<script>alert" not in text
    assert Parsed(text).table("run")[0]["run"] == evil
    assert Parsed(text).boards["runs"]["views"][0]["legend"][0]["name"] == evil


def test_a_title_of_a_figure_is_text_too(text) -> None:
    assert "<script>alert" not in text
    assert "A <script>alert(1)</script> title" in "".join(Parsed(text).texts["figcaption"])


def test_a_page_is_called_what_it_holds(out, own, tmp_path) -> None:
    of_paper = "1 figure of “Towards Understanding Sharpness-Aware Minimization”, run again"
    assert title(gathered([out])) == of_paper
    assert title(gathered([own])) == "4 runs of fc on digits"
    assert title(gathered([own, out])) == f"4 runs of fc on digits, and {of_paper}"
    shutil.copytree(own / "sam-1", tmp_path / "sam-1")
    assert title(gathered([tmp_path])) == "1 run of fc on digits"
    linear = TrainConfig(model="linear", dataset="gaussians_binary", epochs=1, batch_size=16, lr_max=0.01)
    launch(linear, tmp_path / "linear", Place("cpu", threads=1), Control())
    assert title(gathered([tmp_path])) == "2 runs of linear and fc on gaussians_binary and digits"


@pytest.mark.parametrize(("kind", "has_runs", "has_figures"), [("own", True, False), ("out", False, True)])
def test_parts_are_there_only_for_what_is_there(request, kind, has_runs, has_figures) -> None:
    parsed = Parsed(page(gathered([request.getfixturevalue(kind)])))
    ids = {a["id"] for a in parsed.all("section")}
    assert ({"curves", "runs"} <= ids) == has_runs
    assert ({"found", "claims", "figure-runs"} <= ids) == has_figures
    assert ("Andriushchenko" in "".join(parsed.texts["header"])) == has_figures
    (heading,) = parsed.texts["h1"]
    assert heading == parsed.texts["title"][0]
    links = [a["href"][1:] for a in parsed.all("a")[1:]]
    assert ids <= set(links), "every part is in the contents"


def test_own_runs_get_their_curves_first(both) -> None:
    parsed = Parsed(both)
    order = [a["id"] for a in parsed.all("section")]
    assert order == ["found", "curves", "runs", "claims", "made-up-quick", "figure-runs"]
    assert both.count("Of own runs the lowest validation error has") == 1
    assert "A picture" in parsed.texts["h3"], "there are not three"


def test_the_summary_counts_every_claim_once(text) -> None:
    parsed = Parsed(text)
    tiles = [item for item in parsed.texts["li"] if re.match(r"[✓✗?–]\d", item)]
    assert tiles == [
        "✓1 agree with the paper",
        "✗1 do not agree",
        "?1 cannot be told from these runs",
        "–0 have no published number",
    ]
    assert "Of 3 claims" in text
    assert len(parsed.table("verdict")) == 3
    assert parsed.table("verdict")[0] == {
        "verdict": "✓ agrees",
        "figure": FIGURE.title,
        "the paper says": "SAM <b>is</b> & stays lower",
        "published": "3 against 4 %",
        "here": "2.00 ± 0.10, 10",
        "seeds": "3",
    }


def test_a_picture_is_in_the_page_once(text) -> None:
    assert text.count("data:image/svg+xml") == 1
    copies = [a for a in Parsed(text).all("img") if "data-of" in a]
    assert [a["data-of"] for a in copies] == ["made-up-quick-picture"]


def test_runs_of_a_figure_are_not_own_ones(out, tmp_path) -> None:
    assert gathered([out]).runs == []
    shutil.copytree(out / "made-up-quick", tmp_path / "made-up-quick")
    for directories in ([out], [tmp_path]):
        rows = {row["run"]: row for row in Parsed(page(gathered(directories))).table("run")}
        for task in tasks("quick"):
            last = Store(out / "runs").run(task).rows()[-1]
            assert rows[task.name]["test error (%)"] == f"{100 * last['test_error']:.4g}"
            assert rows[task.name]["method"] == ("64-SAM" if task.config.is_sam else "ERM")
    both = gathered([out, out / "made-up-quick", tmp_path / "made-up-quick"])
    assert len(both.figures) == 1, "a copy is not a second figure"


def test_the_table_of_runs_says_what_differs_and_a_sentence_what_does_not(own) -> None:
    found = gathered([own])
    text = page(found)
    rows = Parsed(text).table("run")
    assert [list(row)[:3] for row in rows] == [["run", "sam_rho", "seed"]] * 4
    by_name = {row["run"]: row for row in rows}
    assert by_name["sam-1"]["sam_rho"] == "0.1"
    assert by_name["sam-1"]["seed"] == "1"
    for run in found.runs:
        stored = json.loads((own / run.name / "metrics.jsonl").read_text().splitlines()[-1])
        assert by_name[run.name]["test error (%)"] == f"{100 * stored['test_error']:.4g}"
    assert "All: dataset digits, model fc, epochs 2, " in text
    assert "batch_size 64" in text


def test_the_best_run_is_chosen_on_validation(own) -> None:
    best = {path.name: json.loads((path / "summary.json").read_text())["best"] for path in own.iterdir()}
    lowest = min(row["validation_error"] for row in best.values())
    (said,) = [p for p in Parsed(page(gathered([own]))).texts["p"] if "lowest validation error" in p]
    (name,) = re.findall(r"has ([^\s:]+)", said)
    assert best[name]["validation_error"] == lowest
    assert f"test error is {100 * best[name]['test_error']:.2f} %" in said


def test_runs_that_are_as_good_as_the_best_are_counted(own) -> None:
    found = gathered([own])
    best = min(found.runs, key=lambda run: run.chosen["validation_error"])
    several = [dataclasses.replace(best, name=name) for name in ("a", "b", "c")]
    (said,) = [p for p in Parsed(page(Gathered([], [], several))).texts["p"] if "lowest validation" in p]
    assert said.startswith("The lowest validation error has a (and as low 2 others): ")


def test_which_run_is_best_is_not_said_where_it_is_not_known_of_all(own) -> None:
    found = gathered([own])
    ends = [dataclasses.replace(run, name="end", rows=[], chosen={}) for run in found.runs[:1]]
    assert "lowest validation error" in page(found)
    assert "lowest validation error" not in page(dataclasses.replace(found, runs=[*found.runs, *ends]))


def test_runs_are_found_as_deep_as_those_of_sweeps_lie(own, tmp_path) -> None:
    shutil.copytree(own, tmp_path / "sweeps" / "runs")
    shutil.copytree(own / "erm-0", tmp_path / "loose")
    found = gathered([tmp_path])
    assert len(found.runs) == 5
    assert all(run.rows for run in found.runs)


def sweep(name, *configs, title="test error by sam_rho"):
    runs = [{"name": str(i), "config": config.to_dict()} for i, config in enumerate(configs)]
    about = {"name": name, "scale": "", "title": title, "runs": runs, "claims": []}
    return FigureFiles(Path("out") / name, about, b"", [])


def test_sweeps_are_told_apart_by_what_was_trained_and_else_by_their_directories() -> None:
    fc, linear = TrainConfig(model="fc"), TrainConfig(model="linear")
    assert named([sweep("a", fc)]) == [("a", "test error by sam_rho")]
    found = named([sweep("a", fc), sweep("b", linear), sweep("c", linear), sweep("d", fc, title="other")])
    assert [label for _, label in found] == [
        "test error by sam_rho (fc on digits)",
        "test error by sam_rho (linear on digits, b)",
        "test error by sam_rho (linear on digits, c)",
        "other (fc on digits)",
    ]
    moved = dataclasses.replace(sweep("a", fc), path=Path("moved/a"))
    assert len({label for _, label in named([sweep("a", fc), moved])}) == 2


def test_measures_of_own_runs_are_in_the_page(own, tmp_path) -> None:
    shutil.copytree(own / "erm-0", tmp_path / "mine")
    line = {"measure": "worst case", "m": 4, "rho": 0.1, "value": 0.5, "stderr": 0.1}
    (tmp_path / "mine" / "sharpness.jsonl").write_text(json.dumps(line) + "\n")
    (row,) = Parsed(page(gathered([tmp_path]))).table("network")
    assert row == {
        "network": "mine",
        "measure": "worst case",
        "m": "4",
        "ρ": "0.1",
        "value": "0.5",
        "standard error": "0.1",
    }


def test_runs_of_one_name_are_told_apart_and_unfinished_ones_are_counted(own, tmp_path) -> None:
    for place in ("a", "b"):
        shutil.copytree(own / "erm-0", tmp_path / place / "run")
    shutil.copytree(own / "erm-1", tmp_path / "half")
    (tmp_path / "half" / "summary.json").unlink()
    found = gathered([tmp_path])
    assert [run.name for run in found.runs] == [str(tmp_path / place / "run") for place in ("a", "b")]
    assert "1 run that is not finished is left out." in page(found)


def test_a_figure_made_twice_is_told_apart_by_its_directory(out, tmp_path) -> None:
    other = tmp_path / "made-up-quick"
    shutil.copytree(out / "made-up-quick", other)
    about = json.loads((other / "figure.json").read_text())
    about["claims"][1]["ours"] = "they fall"
    (other / "figure.json").write_text(json.dumps(about))
    parsed = Parsed(page(gathered([out, tmp_path])))
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    label = f"{FIGURE.title} (quick, {other})"
    assert [row["figure"] for row in parsed.table("verdict") if row["here"] == "they fall"] == [label]
    assert {"made-up-quick", "made-up-quick-2"} <= set(ids)
    assert set(parsed.boards) <= set(ids)


def test_a_figure_at_two_scales_is_told_apart(out) -> None:
    drawn(FIGURE, "small", out)
    found = gathered([out])
    shutil.rmtree(out / "made-up-small")
    rows = Parsed(page(found)).table("verdict")
    labels = [f"{FIGURE.title} (quick)", f"{FIGURE.title} (small)"]
    assert [row["figure"] for row in rows if row["the paper says"] == "ERM rises"] == labels
    assert title(found).startswith("1 figure"), "at two scales it is one"


def test_runs_of_one_kind_have_no_options_to_tell_them_apart(own, tmp_path) -> None:
    shutil.copytree(own / "erm-0", tmp_path / "alone")
    text = page(gathered([tmp_path]))
    assert "It has: dataset digits" in text
    assert "lowest validation error" not in text
    assert TINY.model in text
