"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowland.report.charts import charts
from lowland.report.gathered import FigureFiles, Gathered, Row

VERDICTS = {
    "agrees": "✓",
    "disagrees": "✗",
    "cannot be told": "?",
    "no published number": "–",
}
"""Each verdict's mark."""


def page(found: Gathered) -> str:
    """The report as HTML: self-contained, for any screen, for print and for screen readers."""
    environment = Environment(
        loader=PackageLoader("lowland.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "inline_svg": _inline_svg}
    resources = importlib.resources.files("lowland.report")
    figures = [
        _figure(figure, *named) for figure, named in zip(found.figures, _named(found.figures), strict=True)
    ]
    return environment.get_template("page.html.j2").render(
        style=Markup(resources.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(resources.joinpath("page.js").read_text(encoding="utf-8")),
        figures=figures,
        claims=[
            claim | {"figure": one["label"], "id": one["id"]} for one in figures for claim in one["claims"]
        ],
        verdicts=VERDICTS,
        runs=_without_empty(found.runs),
        sharpness=_without_empty(found.sharpness),
        charts=Markup(_json({one["id"]: one["charts"] for one in figures})),
        scales=sorted({figure.about["scale"] for figure in found.figures} - {""}),  # a sweep has none
    )


def _named(figures: Sequence[FigureFiles]) -> list[tuple[str, str]]:
    """An id and a label for each: its name, with the scale and the directory where it takes them to tell."""
    names = Counter(figure.about["name"] for figure in figures)
    kinds = Counter((figure.about["name"], figure.about["scale"]) for figure in figures)
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for figure in figures:
        name, scale = kind = figure.about["name"], figure.about["scale"]
        seen[kind] += 1
        again = "" if seen[kind] == 1 else f"-{seen[kind]}"
        told = [scale] * (names[name] > 1 and scale != "") + [str(figure.path)] * (kinds[kind] > 1)
        found.append((f"{name}-{scale}{again}", f"{name} ({', '.join(told)})" if told else name))
    return found


def _figure(figure: FigureFiles, name: str, label: str) -> dict[str, Any]:
    """What the page shows of a figure, by the id ``name``."""
    about = figure.about
    return {
        "id": name,
        "label": label,
        "about": about,
        "svg": figure.svg,
        "claims": about["claims"],
        "charts": charts(figure),
        "summary": summary(about["claims"]),
        "configs": [
            {"run": run["name"]} | {k: _plain(v) for k, v in run["config"].items()} for run in about["runs"]
        ],
    }


def summary(claims: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What agrees with the paper, what does not, and what cannot be seen: a heading and a sentence each."""
    headings = {
        "agrees": "Agrees with the paper",
        "disagrees": "Does not agree",
        "cannot be told": "Cannot be told from these runs",
        "no published number": "Without a published number",
    }
    found = []
    for verdict, heading in headings.items():
        own = [f"{claim['statement']} ({claim['ours']})" for claim in claims if claim["verdict"] == verdict]
        if own:
            found.append((heading, "; ".join(own) + "."))
    return found


def number(value: object) -> str:
    """As a table shows it: four significant digits, nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _without_empty(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same columns, those that none of them fills left out."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    used = [name for name in names if any(row.get(name) not in (None, "") for row in rows)]
    return [{name: row.get(name) for name in used} for row in rows]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else number(value)


def _inline_svg(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
