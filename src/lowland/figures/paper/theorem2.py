"""Theorem 2: convergence of unnormalized m-SAM under its bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowland.diagonal.theorem2 import Theorem2Config
from lowland.figures.paper.drawing import shared_legend
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.simulated import table_rows
from lowland.figures.style import in_our_style, panels
from lowland.figures.tasks import Simulation, Store, Task

_CONFIG = Theorem2Config()
_TITLES = {"loss": "loss above the minimum, last iterate", "gradient": "mean squared gradient, all iterates"}


def runs(_: Scale) -> list[Task]:
    """m = 1 and 16 on noisy quadratics."""
    return [Simulation(_CONFIG)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Measured and allowed at every number of steps."""
    return table_rows(tasks, store, "result", "curve")


@in_our_style
def plot(rows: Rows) -> Figure:
    """Measured, with three standard errors, and the bound dashed."""
    figure, axes = panels(list(_TITLES.values()), height=3.8)
    for ax, statement in zip(axes, _TITLES, strict=True):
        own = [row for row in rows if row["statement"] == statement]
        for i, label in enumerate(dict.fromkeys(row["run"] for row in own)):
            steps, measured, error, bound = (
                np.array([row[name] for row in own if row["run"] == label])
                for name in ("steps", "measured", "error", "bound")
            )
            ax.plot(steps, measured, color=f"C{i}", label=label)
            ax.plot(steps, bound, "--", color=f"C{i}", label=f"{label}, bound")
            low = np.maximum(measured - 3 * error, 0.1 * measured)
            ax.fill_between(steps, low, measured + 3 * error, color=f"C{i}", alpha=0.2)
        ax.set(xscale="log", yscale="log", xlabel="T")
    shared_legend(figure, axes)
    return figure


def claims(rows: Rows) -> list[Claim]:
    """The measured gap is under the bound everywhere."""
    found = []
    for statement, title in _TITLES.items():
        own = [row for row in rows if row["statement"] == statement]
        if not own:
            continue
        closest = max(row["measured"] / row["bound"] for row in own)
        found.append(
            Claim(
                f"{title}: never above the bound",
                "Theorem 2",
                f"at most {closest:.2g} of the bound, {_CONFIG.seeds} runs for each m",
                _CONFIG.seeds,
                "agrees" if closest <= 1.0 else "disagrees",
            )
        )
    return found


FIGURE = PaperFigure(
    "theorem2",
    "Convergence of unnormalized m-SAM under the bound of Theorem 2",
    "Theorem 2",
    runs,
    data,
    plot,
    claims,
    "On a mean of quadratics whose gradients have the same variance everywhere, with the theorem's step "
    "sizes.",
)
