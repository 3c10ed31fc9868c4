"""The line between the network of ERM and the one that SAM made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowland.deep.records import PointRow
from lowland.deep.view import SceneryConfig
from lowland.figures.paper.drawing import line_with_spread
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.finetuned import fine_tuned
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sharpness import barrier
from lowland.sweeps import Between, Store, Task

_VIEW = SceneryConfig(view="line", points=31, low=-1.0, high=2.0, n_eval=1024)


def runs(scale: Scale) -> list[Task]:
    """For every seed, the line from ERM → SAM (t = 0) through ERM (t = 1)."""
    return [Between(four.after["ERM → SAM"], four.before["ERM"], _VIEW) for four in fine_tuned(scale)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Losses, and errors in per cent, along the line."""
    rows: Rows = []
    for task in tasks:
        if isinstance(task, Between) and store.has(task):
            about = {"seed": task.a.config.seed, "published": False, "run": task.name}
            for row in store.run(task).rows(PointRow):
                errors = {name: 100.0 * row[name] for name in ("train_error", "test_error")}
                rows.append(about | row | errors)
    return rows


@in_our_style
def plot(rows: Rows) -> Figure:
    """Loss and error on both splits along the line."""
    figure, axes = panels(["loss", "error (%)"], height=3.8)
    for ax, name in zip(axes, ("loss", "error"), strict=True):
        for color, split in (("C0", "train"), ("C1", "test")):
            line_with_spread(ax, rows, "t", f"{split}_{name}", color=color, label=split)
        for t, where in ((0.0, "ERM → SAM"), (1.0, "ERM")):
            ax.axvline(t, color="0.7", linewidth=0.8)
            ax.text(t, 0.98, f" {where}", transform=ax.get_xaxis_transform(), fontsize="small", va="top")
        ax.set_xlabel("t")
    shared_legend(figure, axes)
    return figure


def claims(rows: Rows) -> list[Claim]:
    """The two minima are linearly connected."""
    seeds = sorted({row["seed"] for row in rows})
    barriers = [_barrier([row for row in rows if row["seed"] == seed]) for seed in seeds]
    if not barriers:
        return []
    return [
        Claim(
            "the minima of ERM and ERM → SAM are linearly connected",
            "training loss flat on [0, 1], between 0.02 and 0.04",
            f"largest rise of the training loss above the line between its ends: {max(barriers):.2g} "
            f"(mean {np.mean(barriers):.2g})",
            len(seeds),
            "agrees" if max(barriers) < 0.02 else "disagrees",
        )
    ]


def _barrier(rows: Rows) -> float:
    return barrier(sorted(rows, key=lambda row: float(row["t"])), "train_loss")


FIGURE = PaperFigure(
    "fig9-interpolation",
    "The loss on the line between the minima of ERM and of ERM → SAM",
    "section 4.2 (linear connectivity)",
    runs,
    data,
    plot,
    claims,
    "On 1,024 examples of each split; counted as connected where the rise is below 0.02, the range of the "
    "published curve. Batch-norm statistics, where there are any, are estimated again at every point.",
    short="Section 4.2: line between minima",
)
