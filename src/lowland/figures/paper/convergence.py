"""Training loss and test error over epochs, ERM and SAM."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from lowland.figures.paper.drawing import colors_of, line_with_spread, methods_of
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.networks import network, with_seeds
from lowland.figures.paper.trained import curve_rows
from lowland.figures.paper.verdicts import compared, mean_and_spread, seeds_of
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sweeps import Store, Task, Training

RHO = {"quick": 0.2, "small": 0.05, "paper": 0.1}
_EPOCHS = {"epochs": 1000}


def runs(scale: Scale) -> list[Task]:
    """ERM and SAM."""
    base = network(scale, **(_EPOCHS if scale == "paper" else {}))
    sam = network(scale, sam_rho=RHO[scale], **(_EPOCHS if scale == "paper" else {}))
    return [Training(config) for config in with_seeds([base, sam], scale)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Errors and losses by epoch."""
    return curve_rows(tasks, store)


@in_our_style
def plot(rows: Rows) -> Figure:
    """Training loss, training error and test error."""
    columns = {
        "train_loss": "training loss",
        "train_error": "training error (%)",
        "test_error": "test error (%)",
    }
    figure, axes = panels(list(columns.values()), height=3.8)
    for ax, name in zip(axes, columns, strict=True):
        for label, color in colors_of(methods_of(rows)).items():
            own = [row for row in rows if row["method"] == label and row["epoch"] > 0]
            line_with_spread(ax, own, "epoch", name, color=color, label=label)
        ax.set_xlabel("epoch")
    axes[0].set_yscale("log")
    late = [row["test_error"] for row in rows if row["epoch"] > 0.2 * max(row["epoch"] for row in rows)]
    if late:
        axes[2].set_ylim(0.8 * min(late), 1.1 * max(late))
    shared_legend(figure, axes)
    return figure


def claims(rows: Rows) -> list[Claim]:
    """Both fit the training set; SAM generalizes better."""
    end = max((row["epoch"] for row in rows), default=0)
    last = {name: [r for r in rows if r["method"] == name and r["epoch"] == end] for name in methods_of(rows)}
    if len(last) < 2:
        return []
    (erm, sam) = ("ERM", next(name for name in last if name != "ERM"))
    loss = {name: _scientific(last[name]) for name in (erm, sam)}
    fits = all(row["train_error"] < 0.5 for name in (erm, sam) for row in last[name])
    return [
        Claim(
            "ERM and SAM both reach almost zero training loss",
            "0.0012 (ERM), 0.0009 (SAM), training error 0 of both",
            f"{loss[erm]} (ERM), {loss[sam]} (SAM), training error "
            f"{mean_and_spread(last[erm], 'train_error')} and {mean_and_spread(last[sam], 'train_error')} %",
            seeds_of(rows),
            "agrees" if fits else "disagrees",
        ),
        compared(
            "SAM's final test error is lower",
            "3.76 % against 5.03 %",
            (sam, last[sam]),
            (erm, last[erm]),
            lower=True,
        ),
    ]


def _scientific(rows: Rows) -> str:
    losses = [row["train_loss"] for row in rows]
    return f"{sum(losses) / len(losses):.2g}"


FIGURE = PaperFigure(
    "convergence",
    "Training loss and test error over epochs",
    "section 4.2 (convergence in practice)",
    runs,
    data,
    plot,
    claims,
    "The paper's runs have 1,000 epochs; that their radius is 0.1 is inferred.",
    short="Section 4.2: convergence",
)
