"""The page: what is in it, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lowland.deep import Control, Place, TrainConfig, launch
from lowland.figures.paper.figure import Claim, PaperFigure
from lowland.figures.paper.files import drawn
from lowland.figures.style import panels
from lowland.report import gathered, page
from lowland.report.charts import charts
from lowland.sweeps import Here, Store, Training, carried_out
from sweeps.counted import Heard

TINY = TrainConfig(model="fc", model_width=8, epochs=2, batch_size=64, lr_max=0.05)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def tasks(_scale):
    return [Training(TINY), Training(TrainConfig(**{**vars(TINY), "sam_rho": 0.1}))]


def data(runs, store):
    return [
        {
            "method": "SAM" if task.config.is_sam else "ERM",
            "seed": 0,
            "published": False,
            "rho": task.config.sam_rho,
        }
        | {"epoch": row["epoch"], "test_error": 100 * row["test_error"], "train_loss": row["train_loss"]}
        for task in runs
        for row in store.run(task).rows()
    ]


def plot(rows):
    figure, (ax,) = panels(["test error"])
    ax.plot([row["epoch"] for row in rows], [row["test_error"] for row in rows])
    return figure


def claims(_rows):
    return [
        Claim("SAM <b>is</b> & stays lower", "3 against 4 %", "2.00 ± 0.10, 10", 3, "agrees"),
        Claim("ERM rises", "yes", "no", 3, "disagrees"),
        Claim("m matters", "yes", "perhaps", 3, "cannot be told"),
    ]


FIGURE = PaperFigure(
    "made-up", "A <script>alert(1)</script> title", "Figure 0", tasks, data, plot, claims, "A note."
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    runs = tasks("quick")
    place = Place("cpu", None, 1)
    assert carried_out(runs, Store(out / "runs"), Here(), place=place, watch=Heard()) == {}
    drawn(FIGURE, "quick", out)
    return out


@pytest.fixture(scope="module")
def text(out):
    return page(gathered([out]))


VOID = {"meta", "link", "img", "input", "br"}


class Parsed(HTMLParser):
    """Elements with their attributes, and rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and set(self.open) & {"td", "th"}:
            self.rows[-1][-1] += data


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(text) -> None:
    parsed = Parsed(text)
    for tag, attributes in parsed.elements:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for tag, a in parsed.elements if tag == "a"}
    assert links <= set(ids)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    images = [a for tag, a in parsed.elements if tag == "img"]
    assert all(image["alt"] for image in images)
    fields = [a["id"] for tag, a in parsed.elements if tag == "input"]
    assert set(fields) == {a["for"] for tag, a in parsed.elements if tag == "label"}


def test_claims_runs_configs_and_curves_are_in_it(text, out) -> None:
    rows = Parsed(text).rows
    assert [
        "made-up",
        "SAM <b>is</b> & stays lower",
        "3 against 4 %",
        "2.00 ± 0.10, 10",
        "3",
        "✓ agrees",
    ] in rows
    last = {task.name: Store(out / "runs").run(task).rows()[-1] for task in tasks("quick")}
    table = next(row for row in rows if "test error (%)" in row and row[0] == "run")
    for row in rows:
        if row[0] in last and len(row) == len(table):
            found = dict(zip(table, row, strict=True))
            assert found["test error (%)"] == f"{100 * last[row[0]]['test_error']:.4g}"
            assert found["method"] == ("64-SAM" if found["ρ"] == "0.1" else "ERM")
            last.pop(row[0])
    assert last == {}
    assert "Does not agree:" in text
    assert "lowland figure made-up --scale quick" in text
    assert "sam_rho 0.1" in text
    stored = json.loads(re.search(r'id="chart-data">(.*?)</script>', text).group(1))
    (error, loss) = stored["made-up-quick"]
    assert (error["y"], loss["y"]) == ("test error (%)", "training loss")
    assert [one["name"] for one in error["series"]] == ["ERM", "SAM, ρ = 0.1"]
    assert [x for x, _ in error["series"][0]["points"]] == [0.0, 1.0, 2.0]


def test_runs_by_themselves_are_reported_with_their_sharpness(tmp_path) -> None:
    launch(TINY, tmp_path / "mine", Place("cpu", threads=1), Control())
    line = {"measure": "worst case", "m": 4, "rho": 0.1, "value": 0.5, "stderr": 0.1}
    (tmp_path / "mine" / "sharpness.jsonl").write_text(json.dumps(line) + "\n")
    found = gathered([tmp_path])
    assert [row["run"] for row in found.runs] == ["mine"]
    assert found.sharpness[0]["value"] == 0.5
    rows = Parsed(page(found)).rows
    assert any(row[:2] == ["mine", "worst case"] for row in rows)


def test_a_run_of_a_figure_is_known_without_its_directory(out, tmp_path) -> None:
    shutil.copytree(out / "made-up-quick", tmp_path / "made-up-quick")
    alone, together = gathered([tmp_path]), gathered([out])
    assert {row["run"] for row in alone.runs} == {row["run"] for row in together.runs}
    both = gathered([out, out / "made-up-quick", tmp_path / "made-up-quick"])
    assert len(both.runs) == 2
    assert len(both.figures) == 1, "a copy is not a second figure"


def test_a_figure_made_twice_is_told_apart_by_its_directory(out, tmp_path) -> None:
    other = tmp_path / "made-up-quick"
    shutil.copytree(out / "made-up-quick", other)
    about = json.loads((other / "figure.json").read_text())
    about["claims"][1]["ours"] = "they fall"
    (other / "figure.json").write_text(json.dumps(about))
    text = page(gathered([out, tmp_path]))
    parsed = Parsed(text)
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    label = f"made-up (quick, {other})"
    assert [row[0] for row in parsed.rows if "they fall" in row] == [label]
    assert f'<a href="#made-up-quick-2">{label}</a>' in text
    assert {"made-up-quick", "made-up-quick-2"} <= set(ids)
    assert set(json.loads(re.search(r'id="chart-data">(.*?)</script>', text).group(1))) <= set(ids)


def test_a_figure_at_two_scales_is_told_apart(out) -> None:
    drawn(FIGURE, "small", out)
    found = gathered([out])
    shutil.rmtree(out / "made-up-small")
    text = page(found)
    labels = ["made-up (quick)", "made-up (small)"]
    assert re.findall(r'<li><a href="#made-up-\w+">(.*?)</a></li>', text) == labels
    assert [row[0] for row in Parsed(text).rows if "ERM rises" in row] == labels


def test_curves_are_means_over_seeds_and_not_too_long() -> None:
    class Figure:
        rows = [
            {
                "method": "ERM",
                "rho": 0.0,
                "seed": s,
                "published": False,
                "epoch": float(e),
                "train_loss": 10.0**-s,
            }
            for s in (0, 1)
            for e in range(1000)
        ] + [{"method": "ERM", "published": True, "epoch": 1.0, "train_loss": 99.0}]

    (chart,) = charts(Figure)
    points = chart["series"][0]["points"]
    assert 200 <= len(points) <= 260
    assert points[0] == (0.0, 0.55)
    assert points[-1][0] == 999.0


def browse(path, tmp_path, script: str, *options: str) -> str:
    """The page's body after ``script`` has run in it, and what it found in the element ``found``."""
    probe = "<script>window.onerror = (m) => { document.documentElement.dataset.error = m; };</script>"
    text = (
        path.read_text()
        .replace("<head>", f"<head>{probe}")
        .replace("</body>", f"<script>{script}</script></body>")
    )
    probed = tmp_path / "probed.html"
    probed.write_text(text)
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *options, "--dump-dom", probed.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


SCRIPT = """
const found = {};
const rows = (id) => [...document.getElementById(id).tBodies[0].rows].filter((row) => !row.hidden);
const cells = (id, i) => rows(id).map((row) => row.cells[i].textContent.trim());
const table = document.getElementById("claims-table");
found.before = cells("claims-table", 1);
const button = table.tHead.rows[0].cells[1].querySelector("button");
button.click();
found.up = cells("claims-table", 1);
found.sort = table.tHead.rows[0].cells[1].getAttribute("aria-sort");
button.click();
found.down = cells("claims-table", 1);
const field = document.getElementById("claims-table-filter");
field.value = "rises DISAGREES";
field.dispatchEvent(new Event("input"));
found.filtered = cells("claims-table", 1);
found.count = document.getElementById("claims-table-count").textContent;
const chart = document.querySelector(".chart");
const press = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
press("ArrowLeft");
press("ArrowLeft");
found.keys = chart.dataset.at;
const svg = chart.querySelector("svg");
const box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 1, clientY: box.top + 20 }));
found.pointer = chart.dataset.at;
found.legend = [...chart.querySelectorAll("li")].map((li) => li.textContent);
found.paths = chart.querySelectorAll("path").length;
found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.error = document.documentElement.dataset.error ?? null;
const pre = document.createElement("pre");
pre.id = "found";
pre.textContent = JSON.stringify(found);
document.body.append(pre);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_in_a_browser_tables_sort_and_filter_and_curves_can_be_read_off(text, out, tmp_path) -> None:
    path = tmp_path / "index.html"
    path.write_text(text)
    dom = browse(path, tmp_path, SCRIPT, "--window-size=390,800")
    found = json.loads(
        re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
        .group(1)
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
    )
    assert found["error"] is None
    assert found["before"] == ["SAM <b>is</b> & stays lower", "ERM rises", "m matters"]
    assert found["up"] == ["ERM rises", "m matters", "SAM <b>is</b> & stays lower"]
    assert found["down"] == found["up"][::-1]
    assert found["sort"] == "ascending"
    assert (found["filtered"], found["count"]) == (["ERM rises"], "1 rows")
    assert (found["keys"], found["pointer"], found["paths"]) == ("0", "2", 2)
    last = Store(out / "runs").run(tasks("quick")[0]).rows()[-1]["test_error"]
    assert found["legend"][0] == f"ERM: {float(f'{100 * last:.4g}'):g}"
    assert found["overflow"] <= 0, "a phone need not scroll sideways"
