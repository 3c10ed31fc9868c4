"""SAM with and without normalization, on clean and on noisy labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib.figure import Figure

from lowland.figures.paper.drawing import colors_of, kinds_of, line_with_spread
from lowland.figures.paper.figure import Claim, PaperFigure, Row, Rows, Scale
from lowland.figures.paper.networks import network, with_seeds
from lowland.figures.paper.trained import curve_rows
from lowland.figures.paper.verdicts import chosen, compared
from lowland.figures.style import in_our_style, panels, shared_legend
from lowland.sweeps import Store, Task, Training

NORMALIZED: dict[Scale, dict[float, tuple[float, ...]]] = {
    "quick": {0.0: (0.2, 0.4), 0.6: (0.2, 0.4)},
    "small": {0.0: (0.05,), 0.6: (0.1,)},
    "paper": {0.0: (0.1,), 0.6: (0.2,)},
}
RAW: dict[Scale, dict[float, tuple[float, ...]]] = {
    "quick": {0.0: (0.3, 1.0), 0.6: (0.1, 0.4, 1.0)},
    "small": {0.0: (0.3,), 0.6: (0.1,)},
    "paper": {0.0: (0.3,), 0.6: (0.4,)},
}


def runs(scale: Scale) -> list[Task]:
    """ERM, SAM and unnormalized SAM, without and with 60 % label noise."""
    configs = []
    for noise in (0.0, 0.6):
        base = network(scale, p_label_noise=noise, **({"epochs": 1000} if scale == "paper" else {}))
        configs.append(base)
        configs += [dataclasses.replace(base, sam_rho=rho) for rho in NORMALIZED[scale][noise]]
        configs += [
            dataclasses.replace(base, sam_rho=rho, sam_no_grad_norm=True) for rho in RAW[scale][noise]
        ]
    return [Training(config) for config in with_seeds(configs, scale)]


def _noise(task: Training) -> Row:
    return {"noise": task.config.p_label_noise}


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Errors by epoch, with the share of wrong labels."""
    return curve_rows(tasks, store, more=_noise)


@in_our_style
def plot(rows: Rows) -> Figure:
    """Test error over epochs, clean and noisy."""
    levels = sorted({row["noise"] for row in rows})
    titles = ["clean labels" if noise == 0.0 else f"{100 * noise:g} % wrong labels" for noise in levels]
    figure, axes = panels(titles, height=3.8)
    colors = colors_of(list(kinds_of(rows)))
    for ax, noise in zip(axes, levels, strict=True):
        own = [row for row in rows if row["noise"] == noise and row["epoch"] > 0]
        kinds = kinds_of(own)
        for label, color in colors.items():
            line_with_spread(ax, kinds.get(label, []), "epoch", "test_error", color=color, label=label)
        ax.set_xlabel("epoch")
        late = [row["test_error"] for row in own if row["epoch"] > 0.15 * max(r["epoch"] for r in own)]
        ax.set_ylim(0.8 * min(late), 1.05 * max(late))
    axes[0].set_ylabel("test error (%)")
    shared_legend(figure, axes)
    return figure


def claims(rows: Rows) -> list[Claim]:
    """Without normalization SAM does as well; with noisy labels it need not fit them."""
    end = max((row["epoch"] for row in rows), default=0)
    last = [row for row in rows if row["epoch"] == end]
    found = []
    for noise, statement, published in (
        (
            0.0,
            "unnormalized SAM generalizes better than ERM too",
            "about 4.1 % (ρ = 0.3), normalized 3.8 %, ERM 5.03 %",
        ),
        (
            0.6,
            "with 60 % wrong labels unnormalized SAM ends below normalized SAM",
            "about 12 % (ρ = 0.4) against more than 40 % (ρ = 0.2)",
        ),
    ):
        own = [row for row in last if row["noise"] == noise]
        names = {row["method"] for row in own}
        raw = next((name for name in names if name.endswith("USAM")), "")
        other = "ERM" if noise == 0.0 else raw.replace("USAM", "SAM")
        found.append(compared(statement, published, chosen(own, raw), chosen(own, other), lower=True))
    return found


FIGURE = PaperFigure(
    "normalization",
    "SAM with and without normalization of the gradient",
    "section 4.2 (normalization)",
    runs,
    data,
    plot,
    claims,
    "Unnormalized SAM is e = ρg; the original code clips it to the length ρ. The paper compares one "
    "radius of each, with noise ρ = 0.2 against 0.4; at scale quick each has a few, and validation chooses.",
    short="Section 4.2: normalization",
)
