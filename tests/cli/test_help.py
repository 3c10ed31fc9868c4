"""Help screens: every option once, in its group, with what its docstring says, in 80 columns."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from lowland.cli.demo import DemoCommand
from lowland.cli.diagonal import DiagonalCommand
from lowland.cli.env import EnvCommand
from lowland.cli.figure import FigureCommand
from lowland.cli.help import print_help
from lowland.cli.landscape import LandscapeCommand
from lowland.cli.relu import ReluCommand
from lowland.cli.report import ReportCommand
from lowland.cli.sharpness import SharpnessCommand
from lowland.cli.sweep import SweepCommand
from lowland.cli.theorem2 import Theorem2Command
from lowland.cli.train import TrainCommand
from lowland.deep import options

COMMANDS = {
    "train": TrainCommand,
    "sweep": SweepCommand,
    "sharpness": SharpnessCommand,
    "landscape": LandscapeCommand,
    "diagonal": DiagonalCommand,
    "relu": ReluCommand,
    "theorem2": Theorem2Command,
    "figure": FigureCommand,
    "report": ReportCommand,
    "demo": DemoCommand,
    "env": EnvCommand,
}


@pytest.mark.parametrize("width", [80, 100, 300])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_listed_once_and_nothing_is_wider_than_the_terminal(
    run, monkeypatch, name, width
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= min(width, 100)
    assert out.isprintable() or set(filter(lambda c: not c.isprintable(), out)) == {"\n"}
    listed = re.findall(r"^  --(\w+)", out, flags=re.MULTILINE)
    assert sorted(listed) == sorted(field.name.rstrip("_") for field in fields(COMMANDS[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_one_that_the_command_takes(run, name) -> None:
    """Its options are the command's, or those of ``lowland train`` for a sweep."""
    out = run(name, "--help")[1]
    assert out.startswith(f"usage: lowland {name} ")
    example = re.search(rf"^  lowland {name} (.*)", out, flags=re.MULTILINE)
    assert example is not None
    known = {field.name for of in (COMMANDS[name], TrainCommand) for field in fields(of)}
    assert set(re.findall(r"--(\w+)", example[1])) <= known


def groups(out: str) -> dict[str, list[str]]:
    """Titles, and the options below them."""
    _, *parts = re.split(r"^(\S.*)\n(?=  --)", out, flags=re.MULTILINE)
    found = zip(parts[::2], parts[1::2], strict=True)
    return {title: re.findall(r"^  --(\w+)", text, flags=re.MULTILINE) for title, text in found}


def test_options_of_train_are_in_the_groups_of_their_dataclasses(run) -> None:
    found = groups(run("train", "--help")[1])
    order = ("Data", "OwnData", "Model", "SAM", "Optimizer", "Loss", "Evaluation", "Run")
    for name, title in zip(order, found, strict=False):
        group = getattr(options, f"{name}Options")
        inherited = {f.name for base in group.__bases__ if base is not object for f in fields(base)}
        assert found[title] == [f.name for f in fields(group) if f.name not in inherited]
        assert group.__doc__.startswith(f"{title}.")
    *_, last = found
    assert last == "The command itself"
    assert {"out", "resume", "device"} <= set(found[last])


def test_a_sweep_says_that_it_takes_every_option_of_train(run) -> None:
    out = " ".join(run("sweep", "--help")[1].split())
    assert "Every option of lowland train may be given" in out
    assert "with one value or several" in out


@dataclass(frozen=True)
class Base:
    """Radii: what is
    climbed.

    Attributes:
        rho: Radii of the
            climb.
        path: Where.
    """

    rho: tuple[float, ...] = (0.05, 1e-6)
    path: Path | None = None


@dataclass(frozen=True)
class Command(Base):
    """Climb.

    Attributes:
        path: Here.
        norm: Of the climb: l2 or linf.
        kind: Which.
        of_: Like a word of Python's.
        a_name_of_more_letters_than_fit: Number.
        fast: Be fast.
    """

    path: Path = Path("runs")
    norm: Literal["l2", "linf"] = "l2"
    kind: Literal["last", "best"] | None = None
    of_: int = 10_000
    a_name_of_more_letters_than_fit: int | None = None
    fast: bool = False


def test_what_an_option_takes_means_and_is_by_default(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_help(Command, "climb")
    assert (
        capsys.readouterr().out
        == """\
usage: climb [--OPTION VALUE ...]

Climb.

N is a whole number, X a number, ... means several; the default is in [ ].

Radii: what is climbed
  --rho X ...              Radii of the climb. [0.05 1e-06]

The command itself
  --path PATH              Here. [runs]
  --norm NAME              Of the climb: l2 or linf. [l2]
  --kind NAME              Which. One of last, best.
  --of N                   Like a word of Python's. [10000]
  --a_name_of_more_letters_than_fit N
                           Number.
  --fast                   Be fast.
"""
    )


def test_on_a_narrow_terminal_meanings_stand_below(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_help(Command, "climb")
    assert "\n  --norm NAME\n      Of the climb: l2 or linf. [l2]\n" in capsys.readouterr().out
