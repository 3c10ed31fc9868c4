"""``lowland relu``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from lowland.cli.arguments import parse, part_of
from lowland.cli.output import Output
from lowland.cli.small_models import carried_out, print_table, require_positive
from lowland.figures.relu import fit_rows, plot_fits, plot_losses
from lowland.relu.experiment import Outcome, ReluConfig, conduct, planned
from lowland.runs import as_rows, table_of

COLUMNS = {
    "steps": "steps",
    "loss": "loss",
    "perturbed_loss": "perturbed",
    "slope_variation": "slope variation",
    "active_kinks": "kinks",
    "norm_a": "‖a‖",
    "norm_w": "‖w‖",
}
TEACHER_COLUMNS = {
    "loss": "loss",
    "test_loss": "test loss",
    "rank": "rank",
    "alive": "neurons active",
    "distinct": "distinct",
}


@dataclass(frozen=True)
class ReluCommand(ReluConfig):
    """Train one-hidden-layer ReLU networks by gradient descent and SAM.

    Example:
        lowland relu --rho 0 0.1 --seeds 5

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
    command, console = parse(ReluCommand, argv, prog="lowland relu"), Output()
    config = part_of(command, ReluConfig)
    require_positive("threads", command.threads)
    rows = carried_out(
        (config.to_dict(), command.out),
        len(planned(config)),
        lambda on_done: conduct(config, threads=command.threads, on_done=on_done),
        lambda outcomes: _pictures(config, outcomes),
        ["losses"] if config.has_teacher else ["losses", "fits"],
        console,
    )
    print_table(rows, TEACHER_COLUMNS if config.has_teacher else COLUMNS, console)
    return 0


def _pictures(config: ReluConfig, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
    losses = {"losses": plot_losses(as_rows(table_of(outcomes, "result")))}
    if config.has_teacher:
        return losses
    networks = [(outcome.label, outcome.seed, outcome.result.network) for outcome in outcomes]
    finals = [outcome.row() for outcome in outcomes]
    return losses | {"fits": plot_fits(fit_rows(outcomes[0].problem, networks) + finals)}
