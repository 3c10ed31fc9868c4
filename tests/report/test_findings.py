"""Verdicts that are counted, and effects that are found from data."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lowland.figures.paper import FIGURES
from lowland.report.findings import counts, effects, highlights
from lowland.report.gathered import FigureFiles

SETTLED = {"seeds": 3, "published": "", "statement": "a claim", "ours": ""}


def figure(name, *claims, rows=()):
    about = {"name": name, "scale": "quick", "runs": [], "claims": [SETTLED | claim for claim in claims]}
    return FigureFiles(Path(name), about, b"", list(rows))


def differing(difference, half, verdict="agrees"):
    return {"verdict": verdict, "difference": difference, "half": half}


def test_verdicts_are_counted_over_all_figures() -> None:
    a = figure("a", {"verdict": "agrees"}, {"verdict": "disagrees"})
    b = figure("b", {"verdict": "agrees"}, {"verdict": "cannot be told"})
    assert counts([a, b]) == {
        "agrees": 2,
        "disagrees": 1,
        "cannot be told": 1,
        "no published number": 0,
    }


def test_effects_leave_out_zero_and_each_figure_has_one() -> None:
    found = [
        figure("small", differing(-1.0, 0.5), differing(-0.9, 0.1)),
        figure("unsure", differing(-50.0, 51.0, "cannot be told")),
        figure("large", differing(+7.0, 0.5, "disagrees")),
        figure("same runs as small", differing(-1.0, 0.5)),
        figure("without numbers", {"verdict": "agrees"}),
    ]
    assert [(one.figure, one.difference) for one in effects(found)] == [(2, 7.0), (0, -1.0)]
    assert len(effects(found, most=1)) == 1


def test_pictures_are_of_the_clearest_effects_then_of_most_settled_claims() -> None:
    found = [
        figure("settled", {"verdict": "agrees"}, {"verdict": "disagrees"}),
        figure("large", differing(-40.0, 20.0)),
        figure("clear", differing(-1.0, 0.1)),
        figure("open", {"verdict": "cannot be told"}),
        figure("clear", differing(-1.0, 0.2)),
    ]
    assert highlights(found) == [2, 1, 0]


def test_an_old_file_without_numbers_is_judged_again_from_its_data() -> None:
    rng = np.random.default_rng(0)
    erm, sam = rng.normal(5.0, 0.1, 5), rng.normal(4.0, 0.1, 5)
    rows = [
        {"network": "n", "method": name, "rho": rho, "m": 128, "seed": i, "published": False}
        | {"test_error": float(value), "validation_error": float(value)}
        for name, rho, values in (("ERM", 0.0, erm), ("128-SAM", 0.1, sam), ("n-SAM", 0.1, erm))
        for i, value in enumerate(values)
    ]
    statement = "128-SAM generalizes better than ERM"
    (effect,) = effects([figure("fig1", {"statement": statement, "verdict": "agrees"}, rows=rows)])
    wanted = stats.ttest_rel(sam, erm).confidence_interval(0.95)
    assert effect.difference - effect.half == pytest.approx(wanted.low)
    assert effect.difference + effect.half == pytest.approx(wanted.high)


def test_every_figure_has_a_short_title_of_its_own() -> None:
    shorts = [one.short for one in FIGURES.values()]
    assert all(0 < len(short) < 40 for short in shorts)
    assert len(set(shorts)) == len(shorts)
