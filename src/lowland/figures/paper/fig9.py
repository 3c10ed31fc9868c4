"""Figure 9: fine-tuning by the other method at the end of training."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from lowland.figures.paper.drawing import line_with_spread
from lowland.figures.paper.figure import Claim, PaperFigure, Row, Rows, Scale
from lowland.figures.paper.finetuned import fine_tuned
from lowland.figures.paper.trained import curve_rows
from lowland.figures.paper.verdicts import compared
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sweeps import Store, Task, Training

_KINDS = ("ERM → ERM", "ERM → SAM", "SAM → ERM", "SAM → SAM")


def runs(scale: Scale) -> list[Task]:
    """ERM and SAM, each continued by ERM and by SAM."""
    return [task for four in fine_tuned(scale) for task in (*four.before.values(), *four.after.values())]


def _kind(task: Training) -> Row:
    after = "SAM" if task.config.is_sam else "ERM"
    if task.start is None:
        return {"kind": after, "offset": 0}
    before = "SAM" if task.start.config.is_sam else "ERM"
    return {"kind": f"{before} → {after}", "offset": task.start.config.epochs}


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Errors by epoch, counted through the switch."""
    return [row | {"epoch": row["epoch"] + row["offset"]} for row in curve_rows(tasks, store, more=_kind)]


@in_our_style
def plot(rows: Rows) -> Figure:
    """Test error over the last epochs before the switch, and after it."""
    figure, (ax,) = panels(["test error (%) before and after the switch"], height=3.8)
    switch = max((row["offset"] for row in rows), default=0)
    first = 0.6 * switch
    for color, kind in (("0.6", "ERM"), ("0.8", "SAM")):
        own = [row for row in rows if row["kind"] == kind and row["epoch"] >= first]
        line_with_spread(ax, own, "epoch", "test_error", color=color, label=f"{kind}, before")
    for i, kind in enumerate(_KINDS):
        own = [row for row in rows if row["kind"] == kind]
        line_with_spread(ax, own, "epoch", "test_error", color=f"C{i}", label=kind)
    ax.axvline(switch, color="0.7", linewidth=0.8)
    ax.set_xlabel("epoch")
    shared_legend(figure, [ax])
    return figure


def claims(rows: Rows) -> list[Claim]:
    """SAM leaves the minimum that ERM found; ERM stays in SAM's."""
    end = max((row["epoch"] for row in rows), default=0)
    last = {kind: [r for r in rows if r["kind"] == kind and r["epoch"] == end] for kind in _KINDS}
    return [
        compared(
            "a few epochs of SAM after ERM lower the test error",
            "4.21 % against 4.63 % on CIFAR-10, 19.82 against 20.84 % on CIFAR-100",
            ("ERM → SAM", last["ERM → SAM"]),
            ("ERM", last["ERM → ERM"]),
            lower=True,
        ),
        compared(
            "a few epochs of ERM after SAM leave it lower than ERM's",
            "3.96 % against 4.63 % on CIFAR-10, 18.98 against 20.84 % on CIFAR-100",
            ("SAM → ERM", last["SAM → ERM"]),
            ("ERM", last["ERM → ERM"]),
            lower=True,
        ),
    ]


FIGURE = PaperFigure(
    "fig9",
    "Fine-tuning: from ERM to SAM and from SAM to ERM at the end of training",
    "Figure 9",
    runs,
    data,
    plot,
    claims,
    "The paper's learning rate after the switch is not visible in its material; 0.001, the schedule's "
    "last, is taken at its scale, and 0.01 at the smaller ones, where there are far fewer steps. The "
    "optimizer's momentum starts anew.",
    short="Figure 9: fine-tuning",
)
