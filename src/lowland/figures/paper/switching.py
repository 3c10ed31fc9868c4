"""From ERM to SAM, and from SAM to ERM, at some epoch of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib.figure import Figure

from lowland.figures.paper.drawing import line_with_spread, panels_of
from lowland.figures.paper.figure import Claim, PaperFigure, Row, Rows, Scale
from lowland.figures.paper.networks import networks, with_seeds
from lowland.figures.paper.published import SWITCHING
from lowland.figures.paper.trained import final_rows
from lowland.figures.paper.verdicts import compared, first_network
from lowland.figures.style import in_our_style, shared_legend
from lowland.sweeps import Store, Task, Training

RHO = {"quick": 0.2, "small": 0.05, "paper": 0.1}
FRACTIONS = {
    "quick": (0.25, 0.5, 0.75),
    "small": (0.25, 0.5, 0.75),
    "paper": tuple(round(0.1 * i, 1) for i in range(1, 10)),
}
_KINDS = ("SAM → ERM", "ERM → SAM")


def runs(scale: Scale) -> list[Task]:
    """ERM, SAM, and each switch at every fraction of the epochs."""
    configs = []
    for base in networks(scale, **({"epochs": 1000} if scale == "paper" else {})):
        sam = dataclasses.replace(base, sam_rho=RHO[scale])
        configs += [base, sam]
        configs += [dataclasses.replace(sam, sam_epoch_frac_end=f) for f in FRACTIONS[scale]]
        configs += [dataclasses.replace(sam, sam_epoch_frac_start=f) for f in FRACTIONS[scale]]
    return [Training(config) for config in with_seeds(configs, scale)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Final errors; ERM and SAM are the ends of both curves."""
    rows: Rows = []
    for row in final_rows(tasks, store, more=_switch):
        kinds = [row["kind"]] if row["kind"] else _KINDS
        rows += [row | {"kind": kind, "at": row["at"] if row["kind"] else _end(row, kind)} for kind in kinds]
    return rows + [
        {"network": name, "kind": kind, "at": 10.0 * i, "test_error": error, "published": True}
        for name, curves in SWITCHING.items()
        for kind, curve in curves.items()
        for i, error in enumerate(curve)
    ]


def _switch(task: Training) -> Row:
    config = task.config
    if config.sam_epoch_frac_end < 1.0:
        return {"kind": _KINDS[0], "at": 100.0 * config.sam_epoch_frac_end}
    if config.sam_epoch_frac_start > 0.0:
        return {"kind": _KINDS[1], "at": 100.0 * config.sam_epoch_frac_start}
    return {"kind": "", "at": 0.0}


def _end(row: Row, kind: str) -> float:
    """Where a run that never switches is on a curve."""
    return 100.0 if (row["method"] == "ERM") == (kind == _KINDS[1]) else 0.0


@in_our_style
def plot(rows: Rows) -> Figure:
    """Test error over the share of epochs before the switch."""
    figure, axes = panels_of(rows)
    for name, ax in axes.items():
        for i, kind in enumerate(_KINDS):
            own = [row for row in rows if row["network"] == name and row["kind"] == kind]
            line_with_spread(ax, own, "at", "test_error", color=f"C{i}", label=kind)
        ax.set_xlabel("switched after (% of the epochs)")
    axes[next(iter(axes))].set_ylabel("test error (%)")
    shared_legend(figure, list(axes.values()))
    return figure


def claims(rows: Rows) -> list[Claim]:
    """What counts is SAM in the second part of training."""
    own = first_network(rows)
    middle = sorted({row["at"] for row in own if 0.0 < row["at"] < 100.0}, key=lambda at: abs(at - 60.0))
    if not middle:
        return []
    at = middle[0]

    def of(kind: str, where: float) -> Rows:
        return [row for row in own if row["kind"] == kind and row["at"] == where]

    sam, erm = of(_KINDS[0], 100.0), of(_KINDS[0], 0.0)
    return [
        compared(
            f"SAM in the last {100 - at:.0f} % alone is better than ERM",
            "3.93 % (last 40 %) against 4.65 %; SAM throughout 3.98 %",
            (f"ERM → SAM at {at:.0f} %", of(_KINDS[1], at)),
            ("ERM", erm),
            lower=True,
        ),
        compared(
            f"SAM in the first {at:.0f} % alone is worse than SAM throughout",
            "4.54 % (first 60 %) against 3.98 %; ERM 4.65 %",
            ("SAM", sam),
            (f"SAM → ERM at {at:.0f} %", of(_KINDS[0], at)),
            lower=True,
        ),
    ]


FIGURE = PaperFigure(
    "switching",
    "Test error against the epoch of the switch between ERM and SAM",
    "section 4.2 (switching)",
    runs,
    data,
    plot,
    claims,
    "The published values are from about 1,000 epochs (inferred).",
    short="Section 4.2: switching",
)
