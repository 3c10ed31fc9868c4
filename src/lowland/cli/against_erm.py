"""What is said of a sweep's best radii beside ERM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lowland.figures.paper.verdicts import Difference
from lowland.figures.sweep import is_share
from lowland.sweeps import Point
from lowland.sweeps.radii import best, kinds_of_sam
from lowland.sweeps.study import text_of


def against_erm(found: Sequence[Point], metric: str) -> list[str]:
    """A sentence for the best radius above 0 of each kind of run that has ERM with all else the same."""
    chosen = [best(kind) for kind in kinds_of_sam(found)]
    return [_said(point, point.erm, metric) for point in chosen if point.erm is not None]


def _said(point: Point, erm: Point, metric: str) -> str:
    of = ", ".join(f"{name} {text_of(value)}" for name, value in point.options.items() if value is not None)
    difference = Difference.of(_rows(point, metric), _rows(erm, metric), "value")
    choice = "; validation chooses ERM" if best([erm, point]) is erm else ""
    return f"{of} minus ERM: {metric} {_told(difference, metric)}{choice}."


def _rows(point: Point, metric: str) -> list[dict[str, Any]]:
    factor = 100.0 if is_share(metric) else 1.0
    return [{"seed": s, "value": factor * v} for s, v in zip(point.seeds, point.values, strict=True)]


def _told(difference: Difference, metric: str) -> str:
    """The difference with its interval, and which of the two is lower, if that is sure."""
    if difference.seeds == 0:
        return "without a difference, as no seed has both"
    if not math.isfinite(difference.mean):
        return "without a difference, as a run diverged: cannot be told"
    form, unit = ("+.2f", " percentage points") if is_share(metric) else ("+.4g", "")
    if difference.seeds == 1:
        return f"{difference.mean:{form}}{unit} (one seed: no interval, no verdict)"
    shown = f"{difference.mean:{form}} ± {difference.half:{form[1:]}}{unit}"
    return f"{shown} (95 % interval, {difference.seeds} paired seeds): {_VERDICTS[difference.is_lower]}"


_VERDICTS = {"agrees": "lower than ERM", "disagrees": "higher than ERM", "cannot be told": "cannot be told"}
