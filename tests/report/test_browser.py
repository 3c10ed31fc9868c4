"""What a browser makes of the page."""

import json
import re
import shutil
import subprocess

import pytest

from lowland.report import gathered, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
found.before = cells("claims-table", 2);
const button = table.tHead.rows[0].cells[2].querySelector("button");
button.click();
found.up = cells("claims-table", 2);
found.sort = table.tHead.rows[0].cells[2].getAttribute("aria-sort");
button.click();
found.down = cells("claims-table", 2);
document.querySelector("[data-fills$=' agrees']").click();
found.filtered = cells("claims-table", 2);
found.count = document.getElementById("claims-table-count").textContent;
const board = document.querySelector(".board");
const panels = () => [...board.querySelectorAll(".panels")[0].children];
const lines = () => panels()[0].querySelectorAll(".line").length;
const press = (key) => panels()[0].dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
press("ArrowLeft");
found.keys = panels()[1].dataset.at;
found.spoken = board.querySelector(".spoken").textContent;
const svg = panels()[1].querySelector("svg");
const box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 1, clientY: box.top + 20 }));
found.pointer = panels()[0].dataset.at;
found.tip = [...panels()[1].querySelectorAll(".tip li")].map((li) => li.textContent);
const series = () => [...board.querySelectorAll(".series")];
found.lines = [lines()];
series()[1].click();
found.pressed = series().map((one) => one.getAttribute("aria-pressed"));
found.lines.push(lines());
board.querySelectorAll(".only")[2].click();
found.only = series().map((one) => one.getAttribute("aria-pressed"));
found.lines.push(lines());
board.querySelectorAll(".only")[2].click();
found.lines.push(lines());
const smoothing = board.querySelector(".smoothing");
smoothing.value = 0.5;
smoothing.dispatchEvent(new Event("input"));
found.raw = panels()[0].querySelectorAll(".raw").length;
board.querySelectorAll(".views button")[1].click();
found.means = [lines(), panels()[0].querySelectorAll(".band").length];
const pictures = [...document.images];
found.copied = pictures[0].src === pictures[1].src && pictures[0].src.startsWith("data:");
found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.error = document.documentElement.dataset.error ?? null;
const pre = document.createElement("pre");
pre.id = "found";
pre.textContent = JSON.stringify(found);
document.body.append(pre);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_in_a_browser_tables_sort_and_filter_and_curves_can_be_read_off(out, own, tmp_path) -> None:
    path = tmp_path / "index.html"
    path.write_text(page(gathered([out, own])))
    dom = browse(path, tmp_path, SCRIPT, "--window-size=375,800")
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
    assert (found["filtered"], found["count"]) == (["SAM <b>is</b> & stays lower"], "1 of 3 rows"), (
        "not what disagrees"
    )
    assert found["keys"] == "1", "a place in one panel is that place in all"
    assert found["spoken"].startswith("training loss, epoch 1: ")
    assert found["pointer"] == "2"
    lasts = {
        p.name: json.loads((p / "metrics.jsonl").read_text().splitlines()[-1])["test_error"]
        for p in own.iterdir()
    }
    wanted = sorted(lasts.values(), reverse=True)
    shown = dict(line.split(": ") for line in found["tip"])
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(
        {name: 100 * value for name, value in lasts.items()}, rel=1e-4
    )
    assert [float(v) for v in shown.values()] == pytest.approx([100 * v for v in wanted], rel=1e-4)
    assert found["pressed"] == ["true", "false", "true", "true"]
    assert found["only"] == ["false", "false", "true", "false"]
    assert found["lines"] == [4, 3, 1, 4]
    assert found["raw"] == 4
    assert found["means"] == [2, 2]
    assert found["copied"]
    assert found["overflow"] <= 0, "a phone need not scroll sideways"
