"""What the numbers of a measure are asked to be, before they are taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lowland.deep.flatness import FlatnessConfig, Measure
from lowland.sharpness import AutoPGD, ProjectedAscent

Row = dict[str, Any]
_TITLES: dict[str, str] = {
    "worst-case": "worst case",
    "average-case": "average case",
    "one-step": "one-step sharpness",
    "suboptimality": "suboptimality factor",
    "gradient-norm": "gradient norm",
    "eigenvalues": "largest eigenvalue",
    "trace": "trace",
    "density": "mean eigenvalue",
    "active-relus": "active ReLUs",
    "feature-rank": "feature rank",
    "knn-error": "kNN error",
}
_WITH_M = {"worst-case", "one-step", "suboptimality", "gradient-norm"}
_WITH_RHO = {"worst-case", "average-case", "one-step", "suboptimality"}


def requests(name: Measure, config: FlatnessConfig, common: Row) -> Iterator[Row]:
    """What each number of a measure is asked to be, as far as it can be said beforehand.

    Args:
        name: The measure.
        config: How it is taken.
        common: What is the same for all of a network's numbers.
    """
    base = {"measure": _TITLES[name], **common}
    search = {"norm": config.norm, "scaling": config.scaling, **search_of(config).settings()}
    search |= {"restarts": config.restarts, "seed": config.seed, "transfer": config.batch_transfer}
    search |= {"climbed": "random targets" if config.random_targets else "the loss"}
    for m in config.m if name in _WITH_M else (None,):
        for rho in config.rho if name in _WITH_RHO else (None,):
            row = base | ({} if rho is None else {"rho": rho}) | ({} if m is None else {"m": m})
            if name in {"worst-case", "suboptimality"}:
                row |= search
            if name == "worst-case" and config.longer is not None:
                row |= {"longer_steps": config.longer}
            if name == "average-case":
                row |= {"scaling": config.scaling, "distribution": config.distribution}
                row |= {"seed": config.seed, "least_samples": config.samples, "target": config.stderr}
            if name in {"eigenvalues", "trace", "density"}:
                row |= {"matrix": config.matrix, "seed": config.seed}
                row |= {"k": config.k} if name == "eigenvalues" else {"asked_products": config.products}
            if name in {"feature-rank", "knn-error"}:
                row |= {"layer": config.feature_layer}
                row |= {"neighbours": config.neighbours} if name == "knn-error" else {}
            yield row


def search_of(config: FlatnessConfig, steps: int | None = None) -> ProjectedAscent | AutoPGD:
    """How the worst case is looked for, by so many steps if they are not the config's."""
    steps = config.steps if steps is None else steps
    if config.search == "auto":
        return AutoPGD(steps)
    return ProjectedAscent(steps, config.step_size, config.direction, config.schedule)
