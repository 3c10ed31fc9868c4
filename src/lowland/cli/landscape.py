"""``lowland landscape``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from lowland.cli.arguments import parse, part_of
from lowland.cli.output import Output, counted
from lowland.cli.small_models import missing_pictures
from lowland.cli.sources import names_of, sources_and_options
from lowland.deep.records import PathRow
from lowland.deep.scenery import Scenery, scenery
from lowland.deep.several import load_subjects
from lowland.deep.subject import SubjectOptions
from lowland.deep.view import SceneryConfig
from lowland.errors import InputError
from lowland.figures.landscape import plot_contour, plot_line, surface_html
from lowland.figures.style import save_all
from lowland.runs import Run, config_hash, describe_environment
from lowland.runs.atomic import write_text
from lowland.runs.threads import require_threads
from lowland.sharpness import barrier


@dataclass(frozen=True)
class LandscapeCommand(SceneryConfig, SubjectOptions):
    """Draw the loss around and between networks.

    Each is a run directory, a file of weights, or package.module:function.

    Example:
        lowland landscape runs/erm runs/sam --view curve

    Attributes:
        out: Directory for rows and pictures; by default runs/ and a name made from the options.
        threads: CPU threads.
    """

    out: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        """Leaves the checks to the config."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    sources, options = sources_and_options(argv, "lowland landscape A [B [C]]")
    command, console = parse(LandscapeCommand, options, prog="lowland landscape A [B [C]]"), Output()
    config, names = part_of(command, SceneryConfig), names_of(sources)
    require_threads(command.threads)
    if command.threads is not None:
        torch.set_num_threads(command.threads)
    config.resolved(len(sources))
    subjects = dict(zip(names, load_subjects(sources, command), strict=True))
    weights = [subject.fingerprint() for subject in subjects.values()]
    asked: dict[str, Any] = {"command": "landscape", "networks": sources, "weights": weights}
    asked |= dataclasses.asdict(config) | _plain(command)
    hashes = [dict(subject.made_of) for subject in subjects.values()]
    if any(hashes):
        asked["made_of"] = hashes
    path = command.out or Path("runs") / f"landscape-{config_hash(asked)}"
    stored = Run.create(path, asked, describe_environment())
    with stored.locked():
        with counted("points", _num_points(config, len(sources)), console) as on_point:
            rows = stored.rows(PathRow)
            stored.keep_rows(len(rows))
            seen = scenery(subjects, config, known=rows, on_row=stored.append, on_point=on_point)
        if stored.is_finished:
            console.say(f"{path} is finished already.")
        _draw(seen, path, console, again=stored.is_finished)
        console.table(["", "", "parameters", "distance", "relative", "cosine", "norms"], _lines(seen))
        if not stored.is_finished:
            stored.finish({"runs": _summary(seen)})
    return 0


def _plain(command: LandscapeCommand) -> dict[str, Any]:
    """What decides a picture; options that are not given are nothing."""
    values = {f.name: getattr(command, f.name) for f in fields(SubjectOptions) if f.name != "trust"}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return {name: list(v) or None if isinstance(v, tuple) else v for name, v in plain.items()}


def _summary(seen: Scenery) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"measure": "distance", **row} for row in seen.distances]
    for name, path in seen.paths.items():
        if "t" in path[0] and {0.0, 1.0} <= {row["t"] for row in path}:
            for value in ("train_loss", "train_error", "test_loss", "test_error"):
                if value in path[0]:
                    found = barrier(path, value)
                    rows.append({"measure": "barrier", "path": name, "of": value, "value": found})
    return rows


def _lines(seen: Scenery) -> list[list[str]]:
    lines = []
    for row in seen.distances:
        if row["b"] is not None:
            numbers = [f"{row[name]:.4g}" for name in ("distance", "relative", "cosine")]
            norms = f"{row['norm_a']:.4g}, {row['norm_b']:.4g}"
            lines.append([row["a"], row["b"], row["parameters"], *numbers, norms])
        elif len(seen.points) == 1:
            lines.append([row["a"], "", row["parameters"], "", "", "", f"{row['norm_a']:.4g}"])
    for row in _summary(seen):
        if row["measure"] == "barrier":
            lines.append(["barrier", row["path"], row["of"], f"{row['value']:.4g}", "", "", ""])
    return lines


def _draw(seen: Scenery, path: Path, console: Output, *, again: bool) -> None:
    """Draws what is seen; ``again`` only what is missing."""
    pictures = _pictures(seen)
    for name in missing_pictures(path, pictures) if again else pictures:
        figure = pictures[name]
        save_all(figure, path / name)
        console.say(f"picture: {path / name}.png")
    if seen.view != "plane" or (again and (path / "surface.html").is_file()):
        return
    try:
        page = surface_html(seen.paths["plane"], "train_loss", title="training loss", points=_places(seen))
    except InputError as error:
        console.say(f"no interactive surface: {error}")
        return
    write_text(path / "surface.html", page)
    console.say(f"interactive: {path / 'surface.html'}")


def _pictures(seen: Scenery) -> dict[str, Figure]:
    if seen.view == "plane":
        rows = seen.paths["plane"]
        titles = {"train_loss": "training loss", "test_error": "test error (%)"}
        if "train_error" not in rows[0]:
            titles["test_loss"] = "test loss"
        return {
            name: plot_contour(rows, name, title=title, points=_places(seen))
            for name, title in titles.items()
            if name in rows[0]
        }
    along = "t" if seen.view in {"line", "curve"} else "x"
    axis = {"line": "t", "curve": "t", "random-line": "random direction, in filters' norms"}
    title = axis.get(seen.view, "along SAM's perturbation, l2 norm")
    ends = {name: place[0] for name, place in seen.points.items()}
    return {"line": plot_line(seen.paths, ends=ends, along=along, axis=title)}


def _places(seen: Scenery) -> Mapping[str, tuple[float, float]]:
    return {name: (place[0], place[1]) for name, place in seen.points.items()}


def _num_points(config: SceneryConfig, networks: int) -> int:
    view = config.resolved(networks)
    return config.points ** (2 if view == "plane" else 1) * (2 if view == "curve" else 1)
