"""Figure 1: ERM, random perturbations, n-SAM and m-SAM against the radius."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lowland.deep import TrainConfig
from lowland.figures.paper.drawing import plot_over_radius
from lowland.figures.paper.figure import Claim, PaperFigure, Row, Rows, Scale
from lowland.figures.paper.networks import networks, with_seeds
from lowland.figures.paper.published import FIGURE1
from lowland.figures.paper.published import against_radius as published
from lowland.figures.paper.trained import final_rows
from lowland.figures.paper.verdicts import chosen, compared, first_network
from lowland.sweeps import Store, Task, Training
from lowland.sweeps.cost import weights_of

RADII = {
    "quick": (0.05, 0.1, 0.2, 0.4, 0.8),
    "small": (0.025, 0.05),
    "paper": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
}
N_SAM_RADII = {"quick": (0.05, 0.1, 0.4, 0.8), "small": (0.025, 0.05), "paper": RADII["paper"]}
DEVIATIONS = {"quick": (0.001, 0.01), "small": (0.003,), "paper": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}


def runs(scale: Scale) -> list[Task]:
    """ERM; m-SAM and n-SAM for every radius; random perturbations for every standard deviation."""
    configs: list[TrainConfig] = []
    for base in networks(scale):
        configs.append(base)
        configs += [dataclasses.replace(base, sam_rho=rho) for rho in RADII[scale]]
        for rho in N_SAM_RADII[scale]:
            configs.append(dataclasses.replace(base, sam_rho=rho, sam_use_prev_batch=True))
        for deviation in DEVIATIONS[scale]:
            configs.append(dataclasses.replace(base, add_weight_perturb_scale=deviation))
    return [Training(config) for config in with_seeds(configs, scale)]


def data(tasks: Sequence[Task], store: Store) -> Rows:
    """Final errors; the radius of random perturbations is σ times the root of the number of weights."""
    rows = final_rows(tasks, store, more=_radius)
    return rows + [row for name, curves in FIGURE1.items() for row in published(name, curves)]


def _radius(task: Training) -> Row:
    deviation = task.config.add_weight_perturb_scale
    return {"rho": deviation * math.sqrt(weights_of(task.config))} if deviation else {}


def claims(rows: Rows) -> list[Claim]:
    """m-SAM helps; n-SAM and random perturbations do not."""
    own = first_network(rows)
    erm = chosen(own, "ERM")
    return [
        compared(
            "128-SAM generalizes better than ERM",
            "4.30 % (ρ = 0.2) against 5.14 % on CIFAR-10, 20.17 against 22.80 % on CIFAR-100",
            chosen(own, "128-SAM"),
            erm,
            lower=True,
        ),
        compared(
            "n-SAM does not improve on ERM",
            "5.10 % (best ρ) against 5.14 % on CIFAR-10, 22.76 against 22.80 % on CIFAR-100",
            chosen(own, "n-SAM"),
            erm,
            lower=False,
        ),
        compared(
            "random perturbations do not improve on ERM",
            "5.10 % (best radius) against 5.14 % on CIFAR-10",
            chosen(own, "random"),
            erm,
            lower=False,
        ),
    ]


FIGURE = PaperFigure(
    "fig1",
    "Weight perturbations: ERM, random, n-SAM and m-SAM against the radius",
    "Figure 1",
    runs,
    data,
    plot_over_radius,
    claims,
    "n-SAM climbs on the previous batch, as the original code does (--sam_use_prev_batch); that the "
    "figure's n-SAM is this one is inferred. Random perturbations are Gaussian; their radius is σ times "
    "the root of the number of weights.",
    short="Figure 1: radius",
)
