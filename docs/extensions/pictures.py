"""Pictures and report of the published results, made from their data before the pages are read."""

from __future__ import annotations

import json
from pathlib import Path

from sphinx.application import Sphinx

from lowland.cli.command import answered
from lowland.figures.paper import FIGURES
from lowland.figures.style import save
from lowland.runs import as_rows, read_table


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers what is made, and when."""
    app.connect("builder-inited", draw)
    app.connect("build-finished", write_report)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def draw(app: Sphinx) -> None:
    """Draws ``figure.svg`` beside the data of every published figure."""
    for about in sorted(_figures(app).glob("*/figure.json")):
        figure = FIGURES[json.loads(about.read_text(encoding="utf-8"))["name"]]
        rows = as_rows(read_table(about.with_name("data.parquet")))
        save(figure.plot(rows), about.with_name("figure.svg"))


def write_report(app: Sphinx, error: Exception | None) -> None:
    """Writes the page that ``lowland report`` makes of the published figures, into ``report``."""
    if error is None and app.builder.format == "html":
        code = answered(["report", str(_figures(app)), "--out", str(Path(app.outdir) / "report")])
        if code:
            raise RuntimeError(f"lowland report must end with 0, got {code}.")


def _figures(app: Sphinx) -> Path:
    return Path(app.srcdir) / "results" / "figures"
