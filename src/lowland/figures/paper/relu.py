"""One-hidden-layer ReLU networks: five fits by ERM and by SAM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.simulated import final_rows, finished, of_kind
from lowland.figures.style import in_our_style, panels
from lowland.figures.tasks import Simulation, Store, Task
from lowland.relu import Network, interpolant_variation
from lowland.relu.experiment import ReluConfig
from lowland.runs import read_table

_CONFIG = ReluConfig()


def runs(_: Scale) -> list[Task]:
    """ERM and n-SAM with ρ = 0.3, five seeds."""
    return [Simulation(_CONFIG)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Final numbers, the fitted functions on a grid, and the points."""
    problem = _CONFIG.data()
    grid = np.linspace(problem.x.min() - 0.15, problem.x.max() + 0.15, 600)
    points = zip(problem.x[:, 0], problem.y, strict=True)
    rows = [{"kind": "point", "published": False, "x": float(x), "y": float(y)} for x, y in points]
    for task in finished(tasks, store):
        columns = {k: np.array(v) for k, v in read_table(store.run(task).path / "weights.parquet").items()}
        for run, seed in sorted(set(zip(columns["run"].tolist(), columns["seed"].tolist(), strict=True))):
            own = (columns["run"] == run) & (columns["seed"] == seed)
            network = Network(columns["w0"][own][None], columns["b"][own], columns["a"][own])
            about = {"kind": "fit", "published": False, "run": run, "seed": seed}
            rows += [
                about | {"x": float(x), "y": float(y)}
                for x, y in zip(grid, network(grid[:, None]), strict=True)
            ]
    return final_rows(tasks, store) + rows


@in_our_style
def plot(rows: Rows) -> Figure:
    """The fits of all seeds, a panel per method, over the points and the lines between them."""
    fits, points = of_kind(rows, "fit"), sorted((row["x"], row["y"]) for row in of_kind(rows, "point"))
    names = list(dict.fromkeys(row["run"] for row in fits))
    figure, axes = panels(names)
    for ax, name in zip(axes, names, strict=True):
        for seed in sorted({row["seed"] for row in fits}):
            own = [(row["x"], row["y"]) for row in fits if (row["run"], row["seed"]) == (name, seed)]
            ax.plot(*zip(*own, strict=True), linewidth=1.0, alpha=0.8)
        ax.plot(*zip(*points, strict=True), "o:", color="black", markersize=4, linewidth=1.0)
        heights = [y for _, y in points]
        margin = 0.6 * (max(heights) - min(heights))
        ax.set(xlabel="x", ylim=(min(heights) - margin, max(heights) + margin))
    return figure


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
    plot,
    claims,
    "The notebook's protocol: the step size falls and the perturbed loss stops training for SAM only. SAM "
    "does not quite pass through the points.",
)
