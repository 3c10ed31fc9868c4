"""One-hidden-layer ReLU networks: five fits by ERM and by SAM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.simulated import final_rows, finished, of_kind
from lowland.figures.relu import fit_rows, plot_fits
from lowland.relu import Network, interpolant_variation
from lowland.relu.experiment import ReluConfig
from lowland.runs import read_table
from lowland.sweeps import Simulation, Store, Task

_CONFIG = ReluConfig()


def runs(_: Scale) -> list[Task]:
    """ERM and n-SAM with ρ = 0.3, five seeds."""
    return [Simulation(_CONFIG)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Final numbers, the fitted functions on a grid, and the points."""
    networks = [entry for task in finished(tasks, store) for entry in _networks(store.run(task).path)]
    fits = fit_rows(_CONFIG.data(), networks)
    return final_rows(tasks, store) + [{"published": False} | row for row in fits]


def _networks(run: Path) -> list[tuple[str, int, Network]]:
    stored = read_table(run / "weights.parquet", ("run", "seed", "w0", "b", "a"))
    columns = {name: np.array(values) for name, values in stored.items()}
    found = []
    for label, seed in dict.fromkeys(zip(columns["run"].tolist(), columns["seed"].tolist(), strict=True)):
        own = (columns["run"] == label) & (columns["seed"] == seed)
        found.append((label, seed, Network(columns["w0"][own][None], columns["b"][own], columns["a"][own])))
    return found


def claims(rows: Rows) -> list[Claim]:
    """SAM's fits are closer to straight lines, with fewer kinks."""
    finals = of_kind(rows, "final")
    erm = [row for row in finals if row["run"] == "ERM"]
    sam = [row for row in finals if row["run"] != "ERM"]
    if not erm or not sam:
        return []
    found = []
    for name, what, published in (
        (
            "slope_variation",
            "a slope of less total variation",
            "drawn; a re-implementation gives 564 to 814 and 95 to 111",
        ),
        ("active_kinks", "fewer active kinks", "drawn; a re-implementation gives 36 to 45 and 22 to 29"),
    ):
        a, b = ([row[name] for row in group] for group in (erm, sam))
        least = (
            f", straight lines {interpolant_variation(_CONFIG.data()):.0f}"
            if name == "slope_variation"
            else ""
        )
        found.append(
            Claim(
                f"SAM's fits have {what} than ERM's",
                published,
                f"ERM {_spread(a)}, SAM {_spread(b)}{least}",
                len(sam),
                "agrees" if max(b) < min(a) else "cannot be told",
            )
        )
    return found


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.0f} ± {np.std(values, ddof=1):.0f}"


FIGURE = PaperFigure(
    "relu",
    "One-hidden-layer ReLU networks: fits of five seeds by ERM and SAM",
    "section 3 (ReLU networks)",
    runs,
    data,
    plot_fits,
    claims,
    "The notebook's protocol: the step size falls and the perturbed loss stops training for SAM only. SAM "
    "does not quite pass through the points.",
    short="Section 3: ReLU networks",
)
