"""``lowland train``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from lowland.cli.arguments import given_options, parse, part_of
from lowland.cli.interrupts import stop_on_signals
from lowland.cli.output import Output
from lowland.cli.progress import Several, describe, shown
from lowland.cli.several import in_one_voice
from lowland.cli.tensorboard import FOLDER, EventLog
from lowland.deep import Control, Interrupted, Place, TrainConfig, launch, run_name, summarize
from lowland.deep.data import TrainingData
from lowland.deep.data.sets import require_folder_read
from lowland.deep.data.understood import understood
from lowland.deep.launch import require_same_run
from lowland.deep.processes import ProcessLost, ranks
from lowland.deep.trusted import require_trust_read, require_trusted, strange_functions
from lowland.errors import InputError, require_default
from lowland.figures.curves import CURVES, draw_curves
from lowland.runs import Run


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a network, on our data or yours, with SAM (sam_rho > 0) or without.

    Example:
        lowland train --model=fc --n_layers=2 --sam_rho=0.1 --m=16 --epochs=20
        lowland train --data=photos --image_size=32 --model=mine:net --sam_rho=0.05

    Attributes:
        out: The run's directory; by default runs/ and a name made from the config.
        resume: Continue the run in this directory; it knows its own config.
        exp_name: Put in front of the run's name.
        trust: With resume: packages whose functions the run may name; your own modules need no word.
        data_dir: Folder with data sets, DIR/cifar10/*.parquet and so on; else $LOWLAND_DATA, else a download.
        device: cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.
        threads: CPU threads.
        checkpoint_every: Seconds between checkpoints; by default one at the end of each epoch.
        log: Also write the rows of the metrics into the run's folder tensorboard, as its scalars; a run that
            has some goes on with them.
        quiet: Plain lines in place of a progress bar.
        dry_run: Train, but write nothing.
    """

    out: Path | None = None
    resume: Path | None = None
    exp_name: str = "other"
    trust: tuple[str, ...] = ()
    data_dir: Path | None = None
    device: str = "auto"
    threads: int | None = None
    checkpoint_every: float | None = None
    log: Literal["tensorboard"] | None = None
    quiet: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Leaves the checks to the config."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0, 130 if it was interrupted, 1 if another process that trains with it has ended."""
    return in_one_voice(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    command = parse(TrainCommand, argv, prog="lowland train")
    group = ranks()
    config, path, place = group.together(lambda: _asked(command, argv))
    console, log = Output(), group.together(lambda: _log(path, command) if group.is_first else None)
    try:
        if path is not None and group.first_alone(lambda: _is_finished(path, config, log)):
            console.say(f"{path} is finished already; nothing to do.")
            return 0
        return _train(config, path, place, command, console, log)
    finally:
        if log is not None:
            log.close()


def _asked(command: TrainCommand, argv: Sequence[str]) -> tuple[TrainConfig, Path | None, Place]:
    """What is to be run, in which directory, and where."""
    config, path, place = part_of(command, TrainConfig), _path(command), _place(command)
    if command.resume is not None:
        given = given_options(TrainCommand, argv) & {f.name for f in fields(TrainConfig)}
        if given:
            raise InputError(f"a resumed run knows its own config, got --{min(given)}.")
        stored = Run.open(command.resume)
        config = TrainConfig.from_dict(stored.config)
        require_trusted(config, command.trust, command.resume)
        require_trust_read(config, command.trust, command.resume)
    else:
        require_default(command, ("trust",), "without resume, where you name functions yourself")
    read = [] if config.data else [config.dataset]
    require_folder_read(command.data_dir, read, f"{'data' if config.data else 'dataset'} {config.data_name}")
    return config, path, place


def _is_finished(path: Path, config: TrainConfig, log: EventLog | None) -> bool:
    """Whether there is nothing to train; what a process that was killed at its end left out is done."""
    if not (path / "summary.json").exists():
        return False
    require_same_run(path, config)
    if not (path / CURVES).exists():  # the run was killed before it was drawn
        draw_curves(path)
    if log is not None:
        log.write_all()
    return True


def _log(path: Path | None, command: TrainCommand) -> EventLog | None:
    """TensorBoard's log, if it is asked for or the run has one."""
    is_asked = command.log == "tensorboard"
    return EventLog(path) if path is not None and (is_asked or (path / FOLDER).is_dir()) else None


_OF_FILES = ("exp_name", "checkpoint_every", "log", "save_model_each_k_epochs", "export_images")
"""What a run writes, or how it is called."""


def _path(command: TrainCommand) -> Path | None:
    for name in ("threads", "checkpoint_every"):
        value = getattr(command, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} must be positive, got {value}.")
    if command.dry_run:
        if command.out is not None or command.resume is not None:
            raise InputError("a dry run writes nothing, so it takes neither --out nor --resume.")
        require_default(command, _OF_FILES, "for a dry run, which writes nothing")
        return None
    if command.resume is not None:
        if command.out is not None:
            raise InputError(f"a resumed run stays where it is, got --out {command.out}.")
        require_default(command, ("exp_name",), "for a resumed run, which has its name")
        return command.resume
    if command.out is not None:
        require_default(command, ("exp_name",), "beside out, which says where the run is")
    prefix = "" if command.exp_name == "other" else f"{command.exp_name}-"
    return command.out or Path("runs") / f"{prefix}{run_name(part_of(command, TrainConfig))}"


def _place(command: TrainCommand) -> Place:
    """Where to run; a resumed run goes on where it was, unless told otherwise."""
    before = Place() if command.resume is None else Place.of(Run.open(command.resume))
    return Place(
        before.device if command.device == "auto" else command.device,
        command.data_dir or before.data_dir,
        command.threads or before.threads,
        before.directory,
    )


def _train(
    config: TrainConfig,
    path: Path | None,
    place: Place,
    command: TrainCommand,
    console: Output,
    log: EventLog | None,
) -> int:
    group = ranks()
    started_before = path is not None and Run(path).checkpoint_path.exists()
    every = command.checkpoint_every

    def on_data(data: TrainingData) -> None:
        for line in understood(data, config.data_name, config.augmentation):
            console.paragraph(line)

    def on_start() -> None:
        if path is not None:
            console.say(f"{'continuing' if started_before else 'training in'} {path}")

    with stop_on_signals() as should_stop, shown(config, quiet=command.quiet, console=console) as observer:
        try:
            observer = observer if log is None else Several((observer, log))
            rows = launch(config, path, place, Control(observer, every, should_stop, on_data, on_start))
        except Interrupted:
            if path is not None and group.is_first:
                draw_curves(path)
                print(f"stopped; continue with: {_resuming(config, path)}", file=sys.stderr)
            return 130
        except ProcessLost:
            further = "." if path is None else f"; continue with: {_resuming(config, path)}"
            raise ProcessLost(f"another process of this run has ended before it did{further}") from None
    if path is not None:
        group.first_alone(lambda: draw_curves(path))
    for name, row in summarize(rows).items():
        console.say(f"{_LABELS[name]}, epoch {row['epoch']:g}:  {describe(row)}")
    if path is not None:
        console.say(f"curves: {path / CURVES}")
    return 0


def _resuming(config: TrainConfig, path: Path) -> str:
    """The command that goes on with a run, by as many processes."""
    number = os.environ.get("LOCAL_WORLD_SIZE", str(ranks().size))
    program = f"torchrun --nproc_per_node {number} -m lowland" if ranks().several else "lowland"
    packages = sorted({package for *_, package in strange_functions(config, path)})
    trust = " ".join(["", "--trust", *packages] if packages else [])
    return f"{program} train --resume {shlex.quote(str(path))}{trust}"


_LABELS = {
    "last": "last",
    "best": "chosen on validation",
    "swa_best": "averaged weights, chosen on validation",
}
