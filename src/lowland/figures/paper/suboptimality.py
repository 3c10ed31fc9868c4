"""How much more many ascent steps find than one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib.figure import Figure

from lowland.deep.flatness import FlatnessConfig
from lowland.deep.records import MeasureRow
from lowland.figures.paper.drawing import line_with_spread, panels_of
from lowland.figures.paper.figure import Claim, PaperFigure, Row, Rows, Scale
from lowland.figures.paper.networks import network, network_label, with_seeds
from lowland.figures.paper.published import CIFAR10, SUBOPTIMALITY
from lowland.figures.paper.verdicts import Difference, mean_and_spread
from lowland.figures.style import in_our_style, shared_legend
from lowland.sweeps import Measured, Store, Task, Training

RHO = {"quick": 0.2, "small": 0.05, "paper": 0.1}
SIZES = {"quick": (4, 16, 64, 256), "small": (4, 16, 64, 256), "paper": (4, 16, 64, 256, 1024)}
STEPS = {"quick": 50, "small": 50, "paper": 100}
EXAMPLES = {"quick": 256, "small": 512, "paper": 1024}


def runs(scale: Scale) -> list[Task]:
    """The suboptimality factor of networks trained by ERM and by SAM, for every m."""
    base = network(scale)
    networks = [base, dataclasses.replace(base, sam_rho=RHO[scale])]
    asked = FlatnessConfig(
        measure=("suboptimality",),
        rho=(RHO[scale],),
        m=SIZES[scale],
        n_eval=EXAMPLES[scale],
        search="projected",
        steps=STEPS[scale],
    )
    return [Measured(Training(config), asked) for config in with_seeds(networks, scale)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """The factor by m and seed."""
    rows: Rows = []
    for task in tasks:
        if isinstance(task, Measured) and store.has(task):
            config = task.of.config
            about: Row = {"network": network_label(config), "method": "SAM" if config.is_sam else "ERM"}
            about |= {"seed": config.seed, "published": False, "run": task.name}
            rows += [
                about | {"m": row.get("m"), "rho": row.get("rho"), "factor": row["value"]}
                for row in store.run(task).rows(MeasureRow)
            ]
    read_off = {"network": CIFAR10, "published": True}
    return rows + [
        read_off | {"method": name, "m": m, "factor": factor}
        for name, curve in SUBOPTIMALITY.items()
        for m, factor in curve.items()
    ]


@in_our_style
def plot(rows: Rows) -> Figure:
    """The factor over m."""
    figure, axes = panels_of(rows)
    for name, ax in axes.items():
        own = [row for row in rows if row["network"] == name]
        for color, trained in (("0.3", "ERM"), ("C0", "SAM")):
            group = [row for row in own if row["method"] == trained]
            line_with_spread(ax, group, "m", "factor", color=color, label=f"trained by {trained}")
        ax.set(xscale="log", yscale="log", xlabel="m")
        sizes = sorted({row["m"] for row in own})
        ax.set_xticks(sizes, [str(m) for m in sizes])
        ax.minorticks_off()
        ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes[next(iter(axes))].set_ylabel("many steps / one step")
    shared_legend(figure, list(axes.values()))
    return figure


def claims(rows: Rows) -> list[Claim]:
    """One step is closer to the maximum for small m, and for networks that SAM trained."""
    own = [row for row in rows if not row["published"]]
    sizes = sorted({row["m"] for row in own})
    if len(sizes) < 2:
        return []

    def of(method: str, m: int) -> Rows:
        return [row for row in own if row["method"] == method and row["m"] == m]

    least, most = sizes[0], sizes[-1]
    found = []
    for statement, published, a, b in (
        (
            f"for ERM the factor is smaller at m = {least} than at m = {most}",
            "1.75 at m = 4, 10.34 at m = 1024",
            ("ERM", least),
            ("ERM", most),
        ),
        (
            f"at m = {most} it is smaller for SAM's network than for ERM's",
            "3.03 against 10.34 at m = 1024",
            ("SAM", most),
            ("ERM", most),
        ),
    ):
        difference = Difference.of(of(*a), of(*b), "factor")
        ours = " against ".join(mean_and_spread(of(*one), "factor") for one in (a, b))
        found.append(Claim(statement, published, ours, difference.seeds, difference.is_lower))
    return found


FIGURE = PaperFigure(
    "suboptimality",
    "Suboptimality of one ascent step: sharpness by many steps over sharpness by one",
    "section 4.1 (hypothesis 1)",
    runs,
    data,
    plot,
    claims,
    "On training examples. The paper's radius, number of examples and number of steps are not known; that "
    "the factor is this quotient is inferred from its code. The search finds a lower bound of the maximum.",
    short="Section 4.1: suboptimality",
)
