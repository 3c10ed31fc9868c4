"""``lowland sweep``."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from lowland.cli.against_erm import against_erm
from lowland.cli.arguments import options_of, parse, several
from lowland.cli.carrying import OF_CARRYING, CarryingOptions, carry_out, check_carrying, engine_for
from lowland.cli.output import Output
from lowland.cli.small_models import require_positive
from lowland.cli.sources import sources_and_options
from lowland.deep import Interrupted, TrainConfig
from lowland.deep.data import TrainingData
from lowland.deep.data.understood import understood
from lowland.errors import InputError, one_of, require_at_most, require_default
from lowland.figures.files import write_figure
from lowland.figures.sweep import is_share, plot_sweep
from lowland.sweeps import (
    METRICS,
    RADII,
    At,
    Failures,
    Grid,
    Point,
    Study,
    grid,
    mean_and_deviation,
    points,
    unfinished,
)
from lowland.sweeps.grid import listed_in
from lowland.sweeps.study import text_of

_USAGE = "lowland sweep"


@dataclass(frozen=True)
class SweepCommand(CarryingOptions):
    """Train for every combination of options.

    Every option of lowland train may be given beside those below, with one value or several (flags: on, off);
    lowland train --help lists them. Its --engine is --sam_engine here.

    Example:
        lowland sweep --model fc --sam_rho 0.05 0.1 --m 1 16 --seeds 5
        lowland sweep show DIR                           # the results, once more

    Attributes:
        seeds: Seeds of each combination, from 0 on.
        together: Options that vary together, not crossed, with a comma between: sam_rho,m.
        from_: File of configs to cross with the other options: JSON, one a line, or TOML, [[run]].
        metric: What to compare, as metrics.jsonl calls it; by default test_error, or test_loss of numbers.
        at: Where: after the last epoch, or at the epoch that validation chose.
        out: Directory of the runs, which sweeps share, and of a directory for each sweep.
        part: I/N: only the I-th of N parts of the runs, as a task of a job array does; without a table.
        dry_run: Say what would be run and about how long it takes, and stop.
    """

    seeds: int | None = None
    together: tuple[str, ...] = ()
    from_: Path | None = None
    metric: str | None = None
    at: At = "last"
    out: Path = Path("runs/sweeps")
    part: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class _ShowCommand:
    """Print a sweep's results again.

    Example:
        lowland sweep show runs/sweeps/DIR --metric train_error

    Attributes:
        metric: What to compare, as metrics.jsonl calls it; by default what the sweep was asked for.
        at: Where: after the last epoch, or as validation chose; by default as the sweep was asked for.
    """

    metric: str | None = None
    at: At | None = None


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0, 1 if a run failed, 130 if it was interrupted."""
    if argv and argv[0] == "show":
        return _show(argv[1:])
    console = Output()
    command, options = _asked(argv)
    check_carrying(command)
    if command.metric is not None:
        one_of("metric", command.metric, METRICS)
    study = Study.of(_grid(command, options), command.out)
    if command.dry_run:
        require_default(command, (*OF_CARRYING, "metric", "at", "part"), "with --dry-run, which runs nothing")
        return _announced(study, console)
    _require_own_weights(command, study)
    tasks, store, jobs = study.tasks[_part(command.part)], study.store, os.cpu_count() or 1
    said: list[str] = []
    engine = engine_for(
        tasks, store, command, jobs, lambda config, data: said.extend(_understood(config, data, study))
    )
    for line in said:  # once nothing is refused any more
        console.paragraph(line)
    for name, needed in study.grid.left_out.items():
        console.say(f"{name} is left out where it would do nothing: it needs {needed}.")
    done = len(tasks) - len(unfinished(tasks, store))
    console.say(f"{len(tasks)} runs, {done} of them done, in {store.path}")
    try:
        with engine.opened() if done < len(tasks) else nullcontext():
            study.keep(command.metric, command.at)
            failures = carry_out(tasks, store, engine, command, jobs, console)
    except Interrupted:
        console.say("stopped; the same command continues.")
        return 130
    for name, reason in failures.items():
        console.say(f"failed: {name}: {reason}")
    if command.part is not None:
        console.say(f"part {command.part} is done; without --part the same command shows all.")
        return 1 if failures else 0
    metric = command.metric or study.usual_metric(command.at)
    found = _draw(study, metric, command.at, failures, argv)
    _print(study, found, metric, command.at, console)
    if found:
        console.say(f"picture: {study.path / 'figure.png'}")
    return 1 if failures else 0


def _asked(argv: Sequence[str]) -> tuple[SweepCommand, dict[str, Sequence[Any]]]:
    """The command's own options, and the values of those of ``lowland train``."""
    words = [f"--from_{word[6:]}" if word.partition("=")[0] == "--from" else word for word in argv]
    if {"-h", "--help"} & set(words):
        parse(SweepCommand, words, prog=_USAGE)
    own = get_type_hints(SweepCommand)
    trained = {_RENAMED.get(name, name): hint for name, hint in get_type_hints(TrainConfig).items()}
    found = options_of(words, {**{name: several(hint) for name, hint in trained.items()}, **own})
    values: dict[str, Sequence[Any]] = {}
    for name in [name for name in found if name in trained and name not in own]:
        given = found.pop(name)
        if trained[name] is bool:
            given = tuple(value == "on" for value in given)
        is_one = get_origin(trained[name]) is tuple  # all words that follow are of one run
        values[_TRAINED.get(name, name)] = (given,) if is_one else given
    return SweepCommand(**found), values


_RENAMED = {"engine": "sam_engine"}
"""Options of ``lowland train`` that are called otherwise here."""
_TRAINED = {here: there for there, here in _RENAMED.items()}


def _grid(command: SweepCommand, options: Mapping[str, Sequence[Any]]) -> Grid:
    require_positive("seeds", command.seeds)
    require_at_most(command, {"seeds": _MOST})
    if command.seeds is not None and "seed" in options:
        raise InputError(f"seed must be left out beside seeds, got {options['seed']}.")
    if not options and command.from_ is None:
        raise InputError("at least one option of lowland train must be given to sweep, got none.")
    seeds = {} if command.seeds is None else {"seed": range(command.seeds)}
    listed = [{}] if command.from_ is None else listed_in(command.from_)
    together = [[_TRAINED.get(name, name) for name in word.split(",")] for word in command.together]
    size = math.prod(map(len, [listed, *options.values(), *seeds.values()]))
    if size > _MOST:
        raise InputError(f"a sweep must have at most {_MOST} runs, got {size} combinations.")
    return grid({**options, **seeds}, together, listed)


_MOST = 10_000


def _part(part: str | None) -> slice:
    """Which of the runs: every N-th, from the I-th on, so that parts are about equally long."""
    if part is None:
        return slice(None)
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"part must be I/N with I from 1 to N, got {part!r}.")
    return slice(int(index) - 1, None, int(count))


def _require_own_weights(command: SweepCommand, study: Study) -> None:
    """Refuses weights that the machines of a cluster cannot read."""
    paths = [config.model_path for config in study.grid.configs if config.model_path is not None]
    if paths and command.engine == "ray" and not command.shared_store:
        raise InputError(
            f"model_path needs shared_store with engine ray, which all machines see, got {paths[0]}."
        )


def _understood(config: TrainConfig, data: TrainingData, study: Study) -> list[str]:
    """What is understood of data of the user's, which the runs share but for some options."""
    if config.data is None:
        return []
    differing = [name for name in ("frac_train", "p_label_noise") if name in study.grid.swept]
    told = [f"  this is of one run: they differ in {' and '.join(differing)}"] if differing else []
    return understood(data, config.data_name, config.augmentation) + told


def _announced(study: Study, console: Output) -> int:
    todo = unfinished(study.tasks, study.store)
    console.say(f"runs: {len(study.names)}, of which done: {len(study.names) - len(todo)}")
    minutes = sum(task.cost() for task in todo) / 60
    said = "not known of what is your own" if math.isnan(minutes) else f"{minutes:.1f}"
    console.say(f"core-minutes, about: {said}")
    for name in study.grid.swept:
        values = dict.fromkeys(getattr(config, name) for config in study.grid.configs)
        console.say(f"{name}: {', '.join(map(text_of, values))}")
    return 0


def _show(argv: Sequence[str]) -> int:
    """``lowland sweep show DIR``."""
    usage = "lowland sweep show DIR"
    names, options = sources_and_options(argv, usage, what="directories of sweeps")
    command, console = parse(_ShowCommand, options, prog=usage), Output()
    for name in names:
        study, record = Study.kept(Path(name))
        at = command.at or record["at"]
        metric = command.metric or record["metric"] or study.usual_metric(at)
        _print(study, points(study.rows(metric, at), study.grid.swept), metric, at, console)
    return 0


def _print(study: Study, found: Sequence[Point], metric: str, at: At, console: Output) -> None:
    """The table, one of the radii that validation chose, and what they are worth beside ERM."""
    missing = len(study.names) - sum(len(point.values) for point in found)
    if missing:
        console.say(f"{missing} of {len(study.names)} runs are not there.")
    if not found:
        return
    title = f"{metric}, {_PLACES[at]}"
    name = f"{metric} (%)" if is_share(metric) else metric
    validation = "validation (%)" if is_share(found[0].chosen_by) else "validation loss"
    heads = [*study.grid.swept, name, validation, "seeds", ""]
    console.table(heads, [_line(point, metric) for point in found], title=title)
    if len(found) > sum(point.is_chosen for point in found) > 1:
        chosen = [_line(point, metric) for point in found if point.is_chosen]
        console.table(heads, chosen, title="radius chosen on validation")
    for sentence in against_erm(found, metric):
        console.paragraph(sentence)


def _draw(study: Study, metric: str, at: At, failures: Failures, words: Sequence[str]) -> list[Point]:
    """The picture and its data, as the files of a figure, if a run is finished; what was found."""
    rows = study.rows(metric, at)
    found = points(rows, study.grid.swept)
    about = {
        "name": study.path.name,
        "title": f"{metric.replace('_', ' ')} by {', '.join(study.grid.swept) or 'seed'}",
        "source": f"lowland sweep, {_PLACES[at]}",
        "scale": "",
        "command": shlex.join([*_USAGE.split(), *words]),
        "note": "",
        "claims": [],
    }
    if found:
        picture = plot_sweep(found, metric)
        write_figure(study.path, picture, rows, study.tasks, study.store, failures, about)
    return found


_PLACES = {
    "last": "last epoch",
    "best": "epoch chosen on validation",
    "swa_best": "averaged weights chosen on validation",
}


def _line(point: Point, metric: str) -> list[str]:
    numbers = [
        _numbers(point.values, is_share(metric)),
        _numbers(point.validation, is_share(point.chosen_by)),
    ]
    mark = "best radius" if point.is_chosen and point.rivals else ""
    options = [_shown(point, name) for name in point.options]
    return [*options, *numbers, str(len(point.values)), mark]


def _shown(point: Point, name: str) -> str:
    return "0 (ERM)" if point.is_erm and name in RADII else text_of(point.options[name])


def _numbers(values: Sequence[float], per_cent: bool) -> str:
    factor = 100.0 if per_cent else 1.0
    mean, deviation = mean_and_deviation([factor * value for value in values])
    shown = f"{mean:.2f}" if per_cent else f"{mean:.4g}"
    return shown if deviation is None else f"{shown} ± {deviation:.2g}"
