"""``lowland demo``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from lowland.cli.arguments import parse
from lowland.cli.interrupts import stop_on_signals
from lowland.cli.output import Output
from lowland.deep import Control, Interrupted, Place, TrainConfig, launch, run_name
from lowland.deep.records import MetricsRow
from lowland.errors import InputError, require_at_most
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
    """Train with and without SAM on digits, 60 % wrongly labelled; two minutes.

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
    require_at_most(command, {"seeds": 1_000})
    console = Output()
    jobs = {
        (seed, label): dataclasses.replace(config, seed=seed)
        for seed in range(command.seeds)
        for label, config in RUNS.items()
    }
    paths = {job: command.out / run_name(config) for job, config in jobs.items()}
    _announce([path for path in paths.values() if not Run(path).is_finished], len(paths), console)
    results: dict[str, list[Run]] = {label: [] for label in RUNS}
    with stop_on_signals() as should_stop:
        for (seed, label), config in jobs.items():
            control = Control(None, 10.0, should_stop)
            try:
                results[label].append(_trained(label, config, paths[seed, label], control, console))
            except Interrupted:
                console.say("stopped; the same command continues.")
                return 130
    rows = {label: [r.rows(MetricsRow) for r in runs] for label, runs in results.items()}
    console.table(_HEADS, _lines(rows), title="60 % label noise")
    picture = command.out / "demo.png"
    save(plot_label_noise(rows), picture)
    console.say(f"picture: {picture}")
    return 0


def _announce(todo: Sequence[Path], count: int, console: Output) -> None:
    """Says what is there already, and what is going to be trained."""
    if not todo:
        console.say(f"All {count} runs are there already; nothing to train.")
        return
    begun = sum(Run(path).checkpoint_path.exists() for path in todo)
    goes_on = f" {begun} goes on where it was stopped." if begun else ""
    there = f" {count - len(todo)} of {count} are there already." if len(todo) < count else ""
    console.say("Training on 584 digits, 60 % of them with a wrong label; the test set's are right.")
    console.say(f"Runs to train: {len(todo)}.{goes_on}{there}")


def _trained(label: str, config: TrainConfig, path: Path, control: Control, console: Output) -> Run:
    """The run in ``path``, trained unless it is finished already."""
    started = time.monotonic()
    stored = Run(path)
    there = stored.is_finished
    if not there:
        with console.status(Text(f"{label}, seed {config.seed}"), spinner="line"):
            # One thread: for networks this small more are slower.
            launch(config, path, Place(device="cpu", threads=1), control)
    row = stored.last_row(MetricsRow)
    how = "there already" if there else f"{time.monotonic() - started:.0f} s"
    error = f"test error {100 * row['test_error']:.1f} % after {config.epochs} epochs"
    console.say(f"{label:<13} seed {config.seed}: {error} ({how})")
    return stored


_HEADS = ("", "radius", "best test error (%)", "final test error (%)", "final train error, wrong labels (%)")


def _lines(results: dict[str, list[list[dict[str, Any]]]]) -> list[list[str]]:
    lines = []
    for label, runs in results.items():
        best = [100 * min(row["test_error"] for row in rows) for rows in runs]
        final = [100 * rows[-1]["test_error"] for rows in runs]
        noisy = [100 * rows[-1]["train_error_noisy"] for rows in runs]
        radius = RUNS[label].sam_rho
        numbers = map(mean_and_deviation, (best, final, noisy))
        lines.append([label, f"{radius:g}" if radius else "-", *numbers])
    return lines


def mean_and_deviation(values: Sequence[float]) -> str:
    """``mean``, and the standard deviation of a sample where there are several.

    Example:
        >>> mean_and_deviation([1.0, 3.0])
        '2.0 ± 1.4'
    """
    sample = torch.tensor(values, dtype=torch.float64)
    return f"{sample.mean():.1f}" + (f" ± {sample.std():.1f}" if len(values) > 1 else "")
