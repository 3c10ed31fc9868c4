"""``lowland demo``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowland.cli.arguments import parse
from lowland.cli.carrying import CarryingOptions, carry_out
from lowland.cli.output import Output
from lowland.deep import Interrupted, TrainConfig
from lowland.errors import InputError, require_at_most
from lowland.figures.files import seconds_of
from lowland.figures.label_noise import Rows, plot_label_noise
from lowland.figures.paper.networks import method
from lowland.figures.paper.trained import curve_rows, final_rows
from lowland.figures.paper.verdicts import Difference, mean_and_spread
from lowland.figures.style import save
from lowland.sweeps import Processes, Store, Training

_ERM = TrainConfig(
    dataset="digits",
    frac_train=0.44,
    p_label_noise=0.2,
    model="fc",
    n_layers=2,
    model_width=256,
    batch_size=512,
    epochs=150,
    lr_max=0.3,
)
_RADII = {512: 0.3, 8: 0.2, 1: 0.092}
"""By m. Chosen by the validation error, wrong labels included, of seeds that are not the demo's."""
RUNS = {method(c): c for c in (_ERM, *(replace(_ERM, sam_rho=rho, m=m) for m, rho in _RADII.items()))}
"""What is trained: of all settings tried (``benchmarks/RESULTS.md``) the one in which m can be seen."""
_SAM = tuple(name for name in RUNS if name != "ERM")
_SETTING = "513 digits, 20 % with a wrong label"
_MOST_JOBS = 2


@dataclass(frozen=True)
class DemoCommand:
    """Train with and without SAM on digits, 20 % wrongly labelled; two minutes.

    Example:
        lowland demo --seeds 3

    Attributes:
        out: Directory of the runs and the picture.
        seeds: Number of seeds; the table gives mean and standard deviation over them.
    """

    out: Path = Path("runs/demo")
    seeds: int = 5


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0, 1 if a run failed, 130 if it was interrupted."""
    command = parse(DemoCommand, argv, prog="lowland demo")
    if command.seeds < 1:
        raise InputError(f"seeds must be positive, got {command.seeds}.")
    require_at_most(command, {"seeds": 1_000})
    console, store = Output(), Store(command.out)
    tasks = [
        Training(replace(config, seed=seed)) for seed in range(command.seeds) for config in RUNS.values()
    ]
    _announce(tasks, store, console)
    jobs = min(_MOST_JOBS, os.cpu_count() or 1)
    # One thread: for networks this small more are slower.
    options = CarryingOptions(threads=1, device="cpu")
    try:
        failures = carry_out(tasks, store, Processes(jobs), options, jobs, console)
    except Interrupted:
        console.say("stopped; the same command continues.")
        return 130
    for name, reason in failures.items():
        console.say(f"failed: {name}: {reason}")
    if failures:
        return 1
    ends = final_rows(tasks, store, more=lambda task: {"seconds": seconds_of(task, store)})
    title = f"{_SETTING}, in full batches"
    seeds = f"{command.seeds} seed{'s' if command.seeds > 1 else ''}"
    console.table(("", "radius", *_COLUMNS.values()), _table(ends), title=f"{title}, {seeds}")
    if command.seeds > 1:
        console.table(("", "difference of test errors, 95 % interval"), _differences(ends))
    picture = command.out / "demo.png"
    save(plot_label_noise(curve_rows(tasks, store), ends, title), picture)
    console.say(f"picture: {picture}")
    console.say(verdict(ends))
    return 0


def _announce(tasks: Sequence[Training], store: Store, console: Output) -> None:
    """Says what is there already, and what is going to be trained."""
    todo = [task for task in tasks if not store.has(task)]
    if not todo:
        console.say(f"All {len(tasks)} runs are there already; nothing to train.")
        return
    begun = sum(store.run(task).checkpoint_path.exists() for task in todo)
    goes_on = f" {begun} of them begun already." if begun else ""
    there = f" {len(tasks) - len(todo)} of {len(tasks)} are there already." if len(todo) < len(tasks) else ""
    console.say(f"Training on {_SETTING}; the test set's are right.")
    console.say(f"Runs to train: {len(todo)}.{goes_on}{there}")


_COLUMNS = {
    "validation_error": "validation error (%)",
    "test_error": "test error (%)",
    "train_error_noisy": "training error, wrong labels (%)",
    "seconds": "seconds a run",
}


def _table(ends: Rows) -> list[list[str]]:
    """A line per method: mean and standard deviation over seeds."""
    radii = {name: f"{config.sam_rho:g}" if config.is_sam else "-" for name, config in RUNS.items()}
    return [
        [name, radius, *(mean_and_spread(_of(ends, name), column) for column in _COLUMNS)]
        for name, radius in radii.items()
    ]


def _of(rows: Rows, name: str) -> Rows:
    return [row for row in rows if row["method"] == name]


def _differences(ends: Rows) -> list[list[str]]:
    """Every SAM against ERM, and every smaller m against the largest."""
    largest, *smaller = _SAM
    pairs = [(name, "ERM") for name in _SAM] + [(name, largest) for name in smaller]
    return [[f"{name} against {other}", str(_difference(ends, name, other))] for name, other in pairs]


def verdict(ends: Rows) -> str:
    """What SAM does against ERM, and small m against the largest.

    Test errors are compared seed by seed. A method is better if the 95 % confidence interval of its mean
    difference (Student's t) is below 0.
    """
    largest, *smaller = _SAM
    better = [name for name in _SAM if _difference(ends, name, "ERM").is_lower == "agrees"]
    best = [name for name in smaller if _difference(ends, name, largest).is_lower == "agrees"]
    if len(_of(ends, "ERM")) < 2:
        return "One seed cannot show which is better."
    sam = f"Better than ERM: {', '.join(better)}" if better else "SAM does not win against ERM"
    small = f"better than {largest}: {', '.join(best)}" if best else "small m does not win here"
    return f"{sam}; {small}."


def _difference(ends: Rows, name: str, other: str) -> Difference:
    return Difference.of(_of(ends, name), _of(ends, other))
