"""m-sharpness of trained networks against their test error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from lowland.deep.flatness import FlatnessConfig
from lowland.deep.records import MeasureRow, MetricsRow
from lowland.figures.paper import fig1, m_sweep
from lowland.figures.paper.drawing import logarithmic
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.trained import identity
from lowland.figures.paper.verdicts import seeds_of
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sweeps import Measured, Store, Task, Training, in_levels

ASKED = {
    "quick": FlatnessConfig(rho=(0.1,), m=(1, 16, 128), n_eval=512, search="projected"),
    "small": FlatnessConfig(rho=(0.1,), m=(4, 128), n_eval=512, search="projected"),
    "paper": FlatnessConfig(rho=(0.1,), m=(16, 128), n_eval=1024, search="projected"),
}


def runs(scale: Scale) -> list[Task]:
    """The m-sharpness of every network of fig1 and m-sweep."""
    (networks, *_) = in_levels([*fig1.runs(scale), *m_sweep.runs(scale)])
    return [Measured(task, ASKED[scale]) for task in networks if isinstance(task, Training)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """A row per network and m, with the network's final test error."""
    rows: Rows = []
    for task in tasks:
        if isinstance(task, Measured) and store.has(task):
            last = store.run(task.of).last_row(MetricsRow)
            about = identity(task.of.config) | {"test_error": 100.0 * last["test_error"], "run": task.name}
            about |= {"trained_m": about.pop("m"), "trained_rho": about.pop("rho")}
            rows += [
                about | {"m": row.get("m"), "rho": row.get("rho"), "sharpness": row["value"]}
                for row in store.run(task).rows(MeasureRow)
                if row["value"] is not None
            ]
    return rows


@in_our_style
def plot(rows: Rows) -> Figure:
    """A point per network, a panel per m, with Kendall's rank correlation."""
    sizes = sorted({row["m"] for row in rows})
    titles = [f"m = {m}: Kendall's τ {rank_correlation(rows, m):+.2f}" for m in sizes]
    figure, axes = panels(titles, height=4.0)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for ax, m in zip(axes, sizes, strict=True):
        for i, name in enumerate(methods):
            own = [row for row in rows if row["m"] == m and row["method"] == name]
            x, y = [row["sharpness"] for row in own], [row["test_error"] for row in own]
            ax.plot(x, y, "oshv^D*P"[i % 8], color=f"C{i % 8}", markersize=4, alpha=0.8, label=name)
        logarithmic(ax, f"worst-case rise of the training loss, ρ = {rows[0]['rho']:g}")
        errors = [row["test_error"] for row in rows]
        ax.set_ylim(0.95 * min(errors), 1.6 * float(np.median(errors)))
    axes[0].set_ylabel("test error (%)")
    shared_legend(figure, axes)
    return figure


def rank_correlation(rows: Rows, m: int) -> float:
    """Kendall's rank correlation of m-sharpness and test error over networks."""
    own = [row for row in rows if row["m"] == m]
    found = kendalltau([row["sharpness"] for row in own], [row["test_error"] for row in own])
    return float(found.statistic)


def claims(rows: Rows) -> list[Claim]:
    """How well m-sharpness ranks the networks, for every m."""
    return [
        Claim(
            f"{m}-sharpness ranks networks by their test error",
            "no numbers can be had; for Foret et al. (2021) the mutual information grows as m falls",
            f"Kendall's τ {rank_correlation(rows, m):+.2f}, {sum(row['m'] == m for row in rows)} networks",
            seeds_of(rows),
            "no published number",
        )
        for m in sorted({row["m"] for row in rows})
    ]


FIGURE = PaperFigure(
    "sharpness-correlation",
    "m-sharpness of the trained networks against their test error",
    "section 4.1 (m-sharpness and generalization)",
    runs,
    data,
    plot,
    claims,
    "The worst case is searched for by 20 steps of projected ascent: a lower bound. The networks are "
    "those of fig1 and m-sweep. Points far above the median error leave the picture, but not the "
    "correlation.",
    short="Section 4.1: sharpness and test error",
)
