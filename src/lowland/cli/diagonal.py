"""``lowland diagonal``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lowland.cli.arguments import parse, part_of
from lowland.cli.output import Output
from lowland.cli.small_models import carried_out, print_table, require_positive
from lowland.diagonal.experiment import DiagonalConfig, Outcome, conduct, planned
from lowland.figures.diagonal import plot_losses, plot_radius, plot_theory
from lowland.runs import as_rows, table_of

COLUMNS = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "l1_norm": "‖β‖₁",
    "missed": "missed",
    "spurious": "spurious",
}
THEORY_COLUMNS = {
    "test_loss": "test loss",
    "area": "∫L",
    "shrunk": "-Σ log α_eff/α",
    "predicted": "ρ‖Δ‖₁",
    "hidden": "hidden",
    "kkt": "KKT residual",
    "distance": "to argmin φ",
    "l1_norm": "‖β‖₁",
}


@dataclass(frozen=True)
class DiagonalCommand(DiagonalConfig):
    """Train diagonal linear networks by GD, SGD and SAM with every m.

    Example:
        lowland diagonal --methods gd 1-sam --rho 0.1 1 --theory

    Attributes:
        out: The run's directory; by default runs/ and a name made from the config.
        threads: Runs at a time; by default one per core. The results do not depend on it.
    """

    out: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        """Leaves the checks to the config."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    command, console = parse(DiagonalCommand, argv, prog="lowland diagonal"), Output()
    config = part_of(command, DiagonalConfig)
    require_positive("threads", command.threads)
    rows = carried_out(
        (config.to_dict(), command.out),
        len(planned(config)),
        lambda on_done: conduct(config, threads=command.threads, on_done=on_done),
        lambda outcomes: _pictures(config, outcomes),
        ["losses", *["radius"] * (not config.phases), *["theory"] * config.theory],
        console,
    )
    if config.theory:
        console.say("Theorem 1 against simulation")
    columns = THEORY_COLUMNS if config.theory else COLUMNS
    print_table(rows, columns, console)
    return 0


def _pictures(config: DiagonalConfig, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
    ends = np.cumsum([phase.steps for phase in outcomes[0].plan.phases])[:-1].tolist()
    pictures = {"losses": plot_losses(as_rows(table_of(outcomes, "result")), ends)}
    if not config.phases:
        pictures["radius"] = plot_radius(outcomes)
    if config.theory:
        pictures["theory"] = plot_theory(as_rows(table_of(outcomes, "weights")))
    return pictures
