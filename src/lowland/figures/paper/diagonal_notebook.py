"""The five cells of the original's notebook on diagonal linear networks, and its last picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowland.diagonal.experiment import DiagonalConfig
from lowland.diagonal.theory import loss
from lowland.figures.diagonal import plot_losses
from lowland.figures.paper.cells import CELLS, SWITCHED, Cell
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.simulated import final_rows, finished, named, of_kind, table_rows
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.runs import read_table
from lowland.sweeps import Simulation, Store, Task


def _labelled(rows: Rows, tasks: Sequence[Task], store: Store) -> Rows:
    """The second run of the same name, which had another step size, says so."""
    configs = [task.config for task in finished(tasks, store)]
    if len({config.gamma for config in configs if isinstance(config, DiagonalConfig)}) < 2:
        return rows
    seen: set[str] = set()
    found = []
    for row in rows:
        label = f"{row['run']}, γ = 10/d" if row["run"] in seen else row["run"]
        seen.add(row["run"])
        found.append(row | {"run": label})
    return found


def _runs(cell: Cell, _: Scale) -> list[Task]:
    return [Simulation(config) for config in cell.configs]


def _data(cell: Cell, tasks: Sequence[Task], store: Store) -> Rows:
    finals = _labelled(final_rows(tasks, store), tasks, store)
    if cell.number == 4:
        return finals
    return finals + table_rows(tasks, store, "result", "curve")


def _plot_losses(rows: Rows) -> Figure:
    return plot_losses(of_kind(rows, "curve"))


@in_our_style
def _plot_grid(rows: Rows) -> Figure:
    """Final test loss over the radius: all of it, and the range that the notebook draws."""
    figure, axes = panels(["final test loss", "final test loss, the notebook's range"], height=4.2)
    names = {"1-SAM": "1-SAM [2ρ]", "n-SAM": "n-SAM", "n-SAM, γ = 10/d": "n-SAM, γ = 10/d"}
    gd = named(rows, "GD")
    for ax in axes:
        for i, (kind, label) in enumerate(names.items()):
            own = [row for row in rows if _kind(row["run"]) == kind]
            points = sorted((_radius(row["run"]), row["test_loss"]) for row in own if not row["diverged"])
            if points:
                ax.plot(*zip(*points, strict=True), "o-", color=f"C{i}", markersize=4, label=label)
            for row in own:
                if row["diverged"]:
                    at = ax.get_xaxis_transform()
                    ax.plot(_radius(row["run"]), 0.98, "x", color=f"C{i}", transform=at)
        if gd is not None:
            ax.axhline(gd["test_loss"], color="0.3", linestyle="--", label="GD")
        ax.set(xscale="log", xlabel="ρ (a cross: diverged)")
    axes[0].set_yscale("log")
    axes[1].set_ylim(-0.002, 0.035)
    shared_legend(figure, axes)
    return figure


def _kind(run: str) -> str:
    stale = ", γ = 10/d" if run.endswith("γ = 10/d") else ""
    return run.partition(",")[0] + stale


def _radius(run: str) -> float:
    return float(run.partition("ρ = ")[2].split()[0].rstrip(","))


def _claims(cell: Cell, rows: Rows) -> list[Claim]:
    if cell.printed:
        return [_as_printed(cell, rows)]
    return {3: _claims_of_sgd, 4: _claims_of_grid, 5: _claims_of_switching}[cell.number](rows)


def _as_printed(cell: Cell, rows: Rows) -> Claim:
    found = {label: named(rows, label) for label in cell.printed}
    deviations = [
        abs(row["test_loss"] / cell.printed[label] - 1.0) for label, row in found.items() if row is not None
    ]
    complete = len(deviations) == len(cell.printed)
    return Claim(
        f"the final test losses that cell {cell.number} printed",
        ", ".join(f"{value:.6g}" for value in cell.printed.values()),
        f"largest relative deviation of {len(deviations)}: {max(deviations, default=float('nan')):.1g}",
        1,
        "agrees" if complete and max(deviations) < 1e-9 else "disagrees",
    )


def _claims_of_sgd(rows: Rows) -> list[Claim]:
    best, gd = named(rows, "1-SAM, ρ = 0.3 [2ρ]"), named(rows, "GD")
    if best is None or gd is None:
        return []
    return [
        Claim(
            "1-SAM generalizes better than gradient descent at the same step size",
            "drawn, not printed",
            f"{best['test_loss']:.3g} (ρ = 0.3) against {gd['test_loss']:.3g}",
            1,
            "agrees" if best["test_loss"] < gd["test_loss"] else "disagrees",
        )
    ]


def _claims_of_grid(rows: Rows) -> list[Claim]:
    gd = named(rows, "GD")
    same = [r["test_loss"] for r in rows if _kind(r["run"]) == "n-SAM" and r["test_loss"] is not None]
    one = [r["test_loss"] for r in rows if _kind(r["run"]) == "1-SAM" and r["test_loss"] is not None]
    last = named(rows, "1-SAM, ρ = 0.9 [2ρ]")
    if gd is None or not same or not one or last is None:
        return []
    below = min(same) < gd["test_loss"]
    return [
        Claim(
            "n-SAM is slightly better than gradient descent at small radii",
            "drawn so, with n-SAM at a smaller step size than gradient descent",
            f"at the same step size: lowest {min(same):.6g} against {gd['test_loss']:.6g}",
            1,
            "agrees" if below else "disagrees",
        ),
        Claim(
            "1-SAM is better by orders of magnitude, and diverges at ρ = 0.9",
            "nan at 0.9",
            f"lowest {min(one):.3g}; at 0.9 {'diverges' if last['diverged'] else last['test_loss']}",
            1,
            "agrees" if last["diverged"] and min(one) < 0.01 * gd["test_loss"] else "disagrees",
        ),
    ]


def _claims_of_switching(rows: Rows) -> list[Claim]:
    gd, switched, back = [row["test_loss"] for row in of_kind(rows, "final")]
    return [
        Claim(
            "1-SAM after gradient descent generalizes better; gradient descent after 1-SAM stays better",
            "drawn, not printed",
            f"GD {gd:.3g}, GD → 1-SAM {switched:.3g}, 1-SAM → GD {back:.3g}",
            1,
            "agrees" if max(switched, back) < gd else "disagrees",
        )
    ]


def _figure(cell: Cell) -> PaperFigure:
    return PaperFigure(
        f"diagonal-notebook-{cell.number}",
        f"Diagonal linear networks, cell {cell.number} of the notebook: {cell.title}",
        f"diag_nets.ipynb, cell {cell.number}",
        functools.partial(_runs, cell),
        functools.partial(_data, cell),
        _plot_grid if cell.number == 4 else _plot_losses,
        functools.partial(_claims, cell),
        cell.note,
        short=f"Notebook {cell.number}: {cell.short}",
    )


def _interpolated(tasks: Sequence[Task], store: Store) -> Rows:
    """Losses at (1 - a) (GD → 1-SAM) + a GD in the weights u and v."""
    rows: Rows = []
    for task in finished(tasks, store):
        columns = read_table(store.run(task).path / "weights.parquet", ("run", "u", "v"))
        labels = list(dict.fromkeys(columns["run"]))
        ends = []
        for label in (labels[1], labels[0]):
            at = [i for i, run in enumerate(columns["run"]) if run == label]
            ends.append([np.array(columns[name])[at] for name in ("u", "v")])
        problem = SWITCHED.problem(0)
        for a in np.linspace(-1.0, 2.0, 100):
            u, v = ((1.0 - a) * first + a * second for first, second in zip(*ends, strict=True))
            rows.append(
                {
                    "kind": "line",
                    "published": False,
                    "a": float(a),
                    "train_loss": loss(problem.X, problem.y, u * v),
                    "test_loss": loss(problem.X_test, problem.y_test, u * v),
                }
            )
    return rows


@in_our_style
def _plot_line(rows: Rows) -> Figure:
    figure, (ax,) = panels(["loss between GD → 1-SAM (a = 0) and GD (a = 1)"], height=3.6)
    for name in ("train_loss", "test_loss"):
        ax.plot([row["a"] for row in rows], [row[name] for row in rows], label=name.replace("_", " "))
    ax.set(yscale="log", xlabel="a")
    ax.legend(loc="best")
    return figure


def _claims_of_line(rows: Rows) -> list[Claim]:
    if not rows:
        return []
    between = [row["train_loss"] for row in rows if 0.0 <= row["a"] <= 1.0]
    ends = max(between[0], between[-1])
    return [
        Claim(
            "the two minima are linearly connected, but only approximately",
            "drawn, with that comment",
            f"highest training loss between them {max(between):.2g}, at the ends {ends:.2g}; at a = 2 "
            f"{rows[-1]['train_loss']:.2g}",
            1,
            "agrees" if ends < max(between) < 0.1 * rows[-1]["train_loss"] else "disagrees",
        )
    ]


FIGURES = (
    *(_figure(cell) for cell in CELLS),
    PaperFigure(
        "diagonal-interpolation",
        "Diagonal linear networks: the loss on the line between two minima",
        "diag_nets.ipynb, last picture",
        functools.partial(_runs, CELLS[-1]),
        _interpolated,
        _plot_line,
        _claims_of_line,
        "The line is straight in the weights u and v.",
        short="Notebook: line between minima",
    ),
)
