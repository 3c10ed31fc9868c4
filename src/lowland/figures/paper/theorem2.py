"""Theorem 2: convergence of unnormalized m-SAM under its bound."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.diagonal.theorem2 import Theorem2Config
from lowland.figures.diagonal import STATEMENTS, plot_convergence
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.simulated import table_rows
from lowland.sweeps import Simulation, Store, Task

_CONFIG = Theorem2Config()


def runs(_: Scale) -> list[Task]:
    """Noisy quadratics with m = 1 and 16."""
    return [Simulation(_CONFIG)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Measured and allowed at every number of steps."""
    return table_rows(tasks, store, "result", "curve")


def claims(rows: Rows) -> list[Claim]:
    """The measured gap is under the bound everywhere."""
    found = []
    for statement, title in STATEMENTS.items():
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
    plot_convergence,
    claims,
    "On a mean of quadratics whose gradients have the same variance everywhere, with the theorem's step "
    "sizes.",
    short="Theorem 2: convergence",
)
