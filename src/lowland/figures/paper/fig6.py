"""Figure 6: diagonal linear networks, a million iterations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowland.diagonal.experiment import DiagonalConfig
from lowland.figures.losses import draw_losses
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.simulated import table_rows
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sweeps import Simulation, Store, Task

_FOUND = DiagonalConfig(rho=(0.117,), gamma=0.0667, alpha=0.021, steps=1_000_000, kernel="algebraic")
_PLATEAUS = {"GD": 1.19e-3, "n-SAM": 1.19e-3, "1-SAM": 1.53e-4}


def runs(_: Scale) -> list[Task]:
    """Gradient descent, n-SAM and 1-SAM at the settings that were found for the figure."""
    return [Simulation(_FOUND)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Losses over iterations in the figure's units: test loss times 2, training loss times 2n."""
    rows = table_rows(tasks, store, "result", "curve")
    scaled = [
        {
            **{name: row[name] for name in ("kind", "published", "run", "iteration")},
            "train_loss": 2.0 * _FOUND.n * row["train_loss"],
            "test_loss": 2.0 * row["test_loss"],
        }
        for row in rows
    ]
    plateaus = [
        {"kind": "plateau", "published": True, "run": name, "test_loss": value}
        for name, value in _PLATEAUS.items()
    ]
    return scaled + plateaus


@in_our_style
def plot(rows: Rows) -> Figure:
    """Both losses over iterations; the published plateaus dotted."""
    figure, axes = panels(["training loss (2n L)", "test loss (2 L)"], height=4.0)
    draw_losses(axes, [row for row in rows if row["kind"] == "curve"], ("train_loss", "test_loss"))
    for value in sorted({row["test_loss"] for row in rows if row["kind"] == "plateau"}):
        axes[1].axhline(value, color="0.4", linestyle=":", linewidth=1.0, label="published plateaus")
    shared_legend(figure, axes)
    return figure


def claims(rows: Rows) -> list[Claim]:
    """Where the three end."""
    found = []
    for name, published in _PLATEAUS.items():
        own = [row for row in rows if row["kind"] == "curve" and row["run"].startswith(name)]
        if not own:
            continue
        last = max(own, key=lambda row: int(row["iteration"]))["test_loss"]
        close = abs(np.log(last / published)) < np.log(1.2)
        found.append(
            Claim(
                f"{name} ends at its plateau (within 20 %)",
                f"{published:.3g}",
                f"{last:.3g}",
                1,
                "agrees" if close else "disagrees",
            )
        )
    return found


FIGURE = PaperFigure(
    "fig6",
    "Diagonal linear networks: ERM, n-SAM and 1-SAM over a million iterations",
    "Figure 6",
    runs,
    data,
    plot,
    claims,
    "The figure's settings are not published. α, γ and ρ were found such that the plateaus of gradient "
    "descent and 1-SAM come out, so these two agree by construction; that n-SAM's is near gradient "
    "descent's, and the order, do not. The end of the training loss does not agree: 1e-25 (ERM) and 4e-14 "
    "(1-SAM) there.",
    short="Figure 6: diagonal networks",
)
