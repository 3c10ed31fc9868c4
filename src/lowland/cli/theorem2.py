"""``lowland theorem2``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.cli.arguments import parse, part_of
from lowland.cli.output import Output
from lowland.cli.small_models import carried_out
from lowland.diagonal.theorem2 import Theorem2Config, conduct
from lowland.figures.diagonal import plot_convergence
from lowland.runs import as_rows, table_of

STATEMENTS = {"loss": "loss above the minimum", "gradient": "mean squared gradient"}


@dataclass(frozen=True)
class Theorem2Command(Theorem2Config):
    """Measure the convergence of unnormalized m-SAM against Theorem 2's bound.

    Example:
        lowland theorem2 --m 1 4 16 --seeds 10

    Attributes:
        out: The run's directory; by default runs/ and a name made from the config.
    """

    out: Path | None = None

    def __post_init__(self) -> None:
        """Leaves the checks to the config."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    command, console = parse(Theorem2Command, argv, prog="lowland theorem2"), Output()
    config = part_of(command, Theorem2Config)
    config.losses()
    rows = carried_out(
        (config.to_dict(), command.out),
        2 * len(config.m),
        lambda on_done: conduct(config, on_done=on_done),
        lambda checks: {"theorem2": plot_convergence(as_rows(table_of(checks, "result")))},
        ["theorem2"],
        console,
    )
    heads = ("", "", "T", "measured", "bound", "largest share of it")
    console.table(heads, [_line(row) for row in rows])
    return 0


def _line(row: Mapping[str, Any]) -> list[str]:
    numbers = (f"{row[name]:.4g}" for name in ("measured", "bound", "closest"))
    return [row["run"], STATEMENTS[row["statement"]], str(row["steps"]), *numbers]
