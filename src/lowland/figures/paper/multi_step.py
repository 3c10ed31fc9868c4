"""One ascent step or ten."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lowland.figures.paper.drawing import plot_over_radius
from lowland.figures.paper.figure import Claim, PaperFigure, Rows, Scale
from lowland.figures.paper.networks import network, network_label, with_seeds
from lowland.figures.paper.published import STEPS
from lowland.figures.paper.published import against_radius as published
from lowland.figures.paper.trained import final_rows
from lowland.figures.paper.verdicts import chosen, compared, first_network
from lowland.sweeps import Store, Task, Training

ONE_STEP = {
    "quick": (0.05, 0.1, 0.2, 0.4, 0.8),
    "small": (0.025, 0.05),
    "paper": (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3),
}
TEN_STEPS = {"quick": (0.1, 0.2), "small": (0.025, 0.05), "paper": ONE_STEP["paper"]}
SMALL_M = {"quick": (0.025, 0.05, 0.1, 0.2), "small": (0.0125, 0.025), "paper": ONE_STEP["paper"][:5]}
OF_PAPER = {"model": "resnet18_gn", "batch_size": 256}


def runs(scale: Scale) -> list[Task]:
    """ERM; SAM with one step and with ten for the whole batch; one step with m = 4."""
    base = network(scale, **(OF_PAPER if scale == "paper" else {}))
    ten: dict[str, Any] = {"sam_iters": 10, "sam_step_size_mult": 0.2}
    configs = [base, *(dataclasses.replace(base, sam_rho=rho) for rho in ONE_STEP[scale])]
    configs += [dataclasses.replace(base, sam_rho=rho, **ten) for rho in TEN_STEPS[scale]]
    configs += [dataclasses.replace(base, sam_rho=rho, m=4) for rho in SMALL_M[scale]]
    return [Training(config) for config in with_seeds(configs, scale)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Final errors."""
    return final_rows(tasks, store) + published(network_label(network("paper", **OF_PAPER)), STEPS)


def claims(rows: Rows) -> list[Claim]:
    """More steps do not help; smaller groups do."""
    own = first_network(rows)
    whole = next(
        (row["method"] for row in own if row["method"].endswith("-SAM") and row["method"] != "4-SAM"), ""
    )
    one = chosen(own, whole)
    return [
        compared(
            "ten ascent steps are no better than one",
            "5.25 % against 5.29 % (m = 256)",
            chosen(own, f"{whole}, 10 steps"),
            one,
            lower=False,
        ),
        compared(
            "4-SAM with one step is better than whole-batch SAM with one",
            "4.78 % against 5.29 % (m = 4 and 256)",
            chosen(own, "4-SAM"),
            one,
            lower=True,
        ),
    ]


FIGURE = PaperFigure(
    "multi-step",
    "One ascent step or ten",
    "section 4.1 (multi-step ascent)",
    runs,
    data,
    plot_over_radius,
    claims,
    "Ten steps of length 0.2 ρ, projected to the ball. The paper's step length is not known, nor its "
    "network: that it is the one with group norm and batches of 256 is inferred from its error of ERM.",
    short="Section 4.1: ascent steps",
)
