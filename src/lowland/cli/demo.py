"""``lowland demo``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lowland.cli.arguments import parse
from lowland.cli.interrupts import stop_on_signals
from lowland.deep import Control, Interrupted, Place, TrainConfig, launch, run_name
from lowland.deep.records import MetricsRow
from lowland.errors import InputError
from lowland.figures.label_noise import plot_label_noise
from lowland.figures.style import save
from lowland.runs import Run

_ERM = TrainConfig(
    dataset="digits",
    frac_train=0.5,
    p_label_noise=0.6,
    model="fc",
    n_layers=2,
    model_width=256,
    epochs=40,
    lr_max=0.3,
)
RUNS = {
    "ERM": _ERM,
    "SAM, m = 128": dataclasses.replace(_ERM, sam_rho=0.3, m=128),
    "SAM, m = 16": dataclasses.replace(_ERM, sam_rho=0.2, m=16),
    "SAM, m = 1": dataclasses.replace(_ERM, sam_rho=0.05, m=1),
}
"""What the demo trains: Figure 12 of the paper in small. The best radius shrinks with m."""


@dataclass(frozen=True)
class DemoCommand:
    """Train with and without SAM on digits of which 60 % have a wrong label; two minutes at most.

    Attributes:
        out: Directory of the runs and the picture.
        seeds: Number of seeds; the table gives mean and standard deviation over them.
    """

    out: Path = Path("runs/demo")
    seeds: int = 1


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0, or 130 if it was interrupted."""
    command = parse(DemoCommand, argv, prog="lowland demo")
    if command.seeds < 1:
        raise InputError(f"seeds must be positive, got {command.seeds}.")
    console = Console()
    console.print("Training on 584 digits, 60 % of them with a wrong label; the test set's are right.")
    results: dict[str, list[Run]] = {label: [] for label in RUNS}
    with stop_on_signals() as should_stop:
        for seed in range(command.seeds):
            for label, config in RUNS.items():
                config = dataclasses.replace(config, seed=seed)
                path = command.out / run_name(config)
                try:
                    results[label].append(
                        _trained(label, config, path, Control(None, 10.0, should_stop), console)
                    )
                except Interrupted:
                    console.print("stopped; the same command continues.")
                    return 130
    rows = {label: [r.rows(MetricsRow) for r in runs] for label, runs in results.items()}
    console.print(_table(rows))
    picture = command.out / "demo.png"
    save(plot_label_noise(rows), picture)
    console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    return 0


def _trained(label: str, config: TrainConfig, path: Path, control: Control, console: Console) -> Run:
    """The run in ``path``, trained unless it is finished already."""
    started = time.monotonic()
    stored = Run(path)
    if not stored.is_finished:
        with console.status(f"{label}, seed {config.seed}"):
            # One thread: for networks this small more are slower.
            launch(config, path, Place(device="cpu", threads=1), control)
    row = stored.last_row(MetricsRow)
    console.print(
        f"{label:<13} seed {config.seed}: test error {100 * row['test_error']:.1f} % "
        f"after {config.epochs} epochs ({time.monotonic() - started:.0f} s)",
        highlight=False,
    )
    return stored


def _table(results: dict[str, list[list[dict[str, Any]]]]) -> Table:
    table = Table(
        "",
        "radius",
        "best test error (%)",
        "final test error (%)",
        "final train error,\nwrong labels (%)",
        title="60 % label noise",
        box=None,
        title_justify="left",
    )
    for label, runs in results.items():
        best = [100 * min(row["test_error"] for row in rows) for rows in runs]
        final = [100 * rows[-1]["test_error"] for rows in runs]
        noisy = [100 * rows[-1]["train_error_noisy"] for rows in runs]
        radius = RUNS[label].sam_rho
        table.add_row(label, f"{radius:g}" if radius else "-", *map(mean_and_deviation, (best, final, noisy)))
    return table


def mean_and_deviation(values: Sequence[float]) -> str:
    """``mean``, and the standard deviation of a sample where there are several.

    Example:
        >>> mean_and_deviation([1.0, 3.0])
        '2.0 ± 1.4'
    """
    sample = torch.tensor(values, dtype=torch.float64)
    return f"{sample.mean():.1f}" + (f" ± {sample.std():.1f}" if len(values) > 1 else "")
