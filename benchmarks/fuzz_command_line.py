"""Gives the command line words of all kinds, and looks at what it answers: work, or one sentence.

    python benchmarks/fuzz_command_line.py                     # 10,000 inputs for each command
    python benchmarks/fuzz_command_line.py --count 100 --only train sharpness
    python benchmarks/fuzz_command_line.py --plant             # an internal error: a traceback

Each input is run by ``lowland.cli.main`` in this process, in a folder of runs, data and files, up to where
training, measuring or simulating would begin. Counted as ``read`` is exit code 0, 130 or that beginning; as
``refused`` exit code 2 with one sentence and every file of the folder as it was. Anything else is a
``traceback``. Ten seconds of the processor are a hang. Exits with 1 unless there is none of these.
"""

import io
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

import numpy as np
from safetensors.torch import load_file, save_file

import lowland.cli.arguments
from fuzzing import Generator, Target, all_fuzzed, asked
from lowland.cli import main as command_line
from lowland.cli.arguments import several
from lowland.cli.demo import DemoCommand
from lowland.cli.diagonal import DiagonalCommand
from lowland.cli.env import EnvCommand
from lowland.cli.figure import FigureCommand
from lowland.cli.landscape import LandscapeCommand
from lowland.cli.relu import ReluCommand
from lowland.cli.report import ReportCommand
from lowland.cli.sharpness import SharpnessCommand
from lowland.cli.sweep import SweepCommand
from lowland.cli.theorem2 import Theorem2Command
from lowland.cli.train import TrainCommand
from lowland.deep import Control, Place, TrainConfig, TrainState, launch
from lowland.deep.models import MODEL_NAMES

MEMORY = 6 << 30
"""Bytes of address space beyond which there is no memory, as on a small machine."""

COMMANDS: Mapping[str, type[Any]] = {
    "train": TrainCommand,
    "sharpness": SharpnessCommand,
    "landscape": LandscapeCommand,
    "diagonal": DiagonalCommand,
    "relu": ReluCommand,
    "theorem2": Theorem2Command,
    "figure": FigureCommand,
    "report": ReportCommand,
    "demo": DemoCommand,
    "env": EnvCommand,
    "sweep": SweepCommand,
}
OPTIONS = {name: get_type_hints(of) for name, of in COMMANDS.items()}
OPTIONS["sweep"] = {name: several(of) for name, of in get_type_hints(TrainConfig).items()} | OPTIONS["sweep"]
CONFIG = TrainConfig(frac_train=0.1, model="fc", model_width=4, epochs=1, batch_size=32)
INPUT = "words.json"
WORDS = {  # what is likely to be right, by option
    **dict.fromkeys(("model_path", "data", "resume"), ("run", "other", "weights.safetensors", "mine.npz")),
    **dict.fromkeys(("out",), ("new", "empty", "run")),
    **{"model": (*MODEL_NAMES, "math:sin", "nothing:f", "torch.nn:Identity", ":", "a.b")},
    **{"dataset": ("digits", "gaussians_binary", "uniform_noise", "mnist")},
    **{"activation": ("relu", "softplus2"), "optimizer": ("sgd", "adam", "adamw", "lbfgs")},
    **{"optimizer_options": ("momentum=0.5", "nesterov=True", "betas=(0.8, 0.9)", "a")},
    **{
        "device": ("cpu", "auto", "meta", "cuda:7", "cpu:1", "vulkan"),
        "layers": (".", "weight", "[", "(?P<"),
    },
    **{
        "feature_layer": ("_model.1", "x"),
    },
    **{
        "phases": (
            "gd:0.03:10",
            "1-sam:0.03:10:0.1",
            "gd:0.1:5+m-sam:0.1:5:0.1:2",
            "sgd:1e400:10",
            "gd:0:0:0:0:0",
        )
    },
}
SOURCES = (
    *("run", "other", "weights.safetensors", "torch.nn:Identity", "math:sin", "empty", "file.txt", "no"),
    *("", ".", "/", "loop", "mine.npz"),
)
STARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {  # what is whole already
    "train": ((), ("--model=fc", "--model_width=4"), ("--model=linear", "--sam_rho=0.1"), ("--resume=run",)),
    "sharpness": (
        *(("run",), ("run", "other"), ("run", "--data=mine.npz"), ("run", "--dataset=uniform_noise")),
        ("weights.safetensors", "--model=fc", "--model_width=4", "--dataset=digits"),
    ),
    "landscape": (("run",), ("run", "other"), ("run", "--view=sam"), ("run", "other", "--view=curve")),
    "figure": (("fig1", "--dry_run"), ("fig6",), ("all", "--dry_run"), ("--list",)),
    "report": ((".",), ("run", "other")),
    "sweep": (
        (),
        ("--model=fc", "--model_width=4", "--sam_rho", "0.1", "0.2"),
        ("--from=mine.toml",),
        ("show",),
    ),
    "runs": (
        ("show", "run"),
        ("list", "."),
        ("show",),
        ("list",),
        ("list", ".", "--json"),
        ("list", "--sort"),
    ),
}
POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "sharpness": SOURCES,
    "landscape": SOURCES,
    "figure": ("fig1", "fig6", "convergence", "all", "fig2", "", "switching"),
    "report": (".", "run", "empty", "no", "file.txt"),
}
ODD_NUMBERS = (
    *(
        "0",
        "-0",
        "-1",
        "1",
        "2",
        "3",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "-inf",
        "1e-400",
        "1e308",
        "0x10",
        "1_0",
    ),
    *(
        str(10**30),
        str(-(10**30)),
        str(2**31),
        str(2**63),
        "9" * 5000,
        "٣",
        "1.5",
        "1,5",
        "1e3",
        "+4",
        " 5",
        "--5",
    ),
    *("0.5", "0.01", "1e-9", "65536", "1025", "999999999", " 5", "--5"),
)
ODD_WORDS = (
    *(
        "",
        " ",
        "-",
        "--",
        "---",
        "=",
        "a=b",
        "--=",
        "a\nb",
        "a\tb",
        "\x1b[31m",
        "[/red]",
        "[bold]",
        "%s",
        "{}",
    ),
    *(
        "\udcff",
        "ü" * 300,
        "a" * 5000,
        "٣",
        "𝔸",
        "\u202e",
        "\ufeff",
        "None",
        "True",
        "false",
        "null",
        "[]",
        "()",
    ),
    *(
        "..",
        ".",
        "/",
        "~",
        "~nobody",
        "run",
        "file.txt",
        "empty",
        "loop",
        "/dev/null",
        "run/config.json",
        "a/b/c",
    ),
    *("sealed", "file.txt/below", "-h", "--help", "--version", "-x", "-1"),
)


class Begins(BaseException):
    """Work would begin here."""


def words_for(command: str, generator: Generator) -> list[str]:
    """A command line."""
    words = [command] if generator.random() < 0.98 else [_misspelt(command, generator)]
    whole = command in STARTS and generator.random() < 0.6
    if whole:
        words += generator.choice(STARTS[command])
    if command == "runs":
        return words + _some(
            ("list", "show", "compare", "lst", "--json", "--sort=m", *SOURCES, *ODD_WORDS), generator, 3
        )
    if command in POSITIONAL and not whole:
        words += _some(POSITIONAL[command] if generator.random() < 0.8 else ODD_WORDS, generator, 3)
    mistakes = generator.choice((0.0, 0.0, 0.1, 0.4))
    for name in _some(tuple(OPTIONS[command]), generator, generator.choice((1, 2, 3, 8))):
        words += _given(command, name, generator, mistakes)
    if generator.random() < 0.1:
        words.insert(generator.randrange(len(words) + 1), generator.choice(ODD_WORDS))
    if generator.random() < 0.05:
        generator.shuffle(words)
    return words


def _some(among: tuple[str, ...], generator: Generator, most: int) -> list[str]:
    return [generator.choice(among) for _ in range(generator.randrange(most + 1))]


def _given(command: str, name: str, generator: Generator, mistakes: float) -> list[str]:
    """One option with what is, or is not, a value of it."""
    hint = OPTIONS[command][name]
    values = _values(name, hint, generator, mistakes)
    if generator.random() < mistakes:
        name = generator.choice((_misspelt(name, generator), _of_others(command, generator), name + "=", ""))
    written = name.replace("_", "-") if generator.random() < 0.3 else name
    if hint is bool and generator.random() < 0.1:
        written = f"no-{written}"
    if len(values) == 1 and generator.random() < 0.5:
        return [f"--{written}={values[0]}"]
    return [f"--{written}", *values]


def _of_others(command: str, generator: Generator) -> str:
    other = generator.choice(list(OPTIONS))
    return generator.choice(sorted(set(OPTIONS[other]) - set(OPTIONS[command])) or ["x"])


def _misspelt(word: str, generator: Generator) -> str:
    at = generator.randrange(len(word) + 1)
    return generator.choice(
        (word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word.upper(), word[:at])
    )


def _values(name: str, hint: Any, generator: Generator, mistakes: float) -> list[str]:
    if generator.random() < mistakes:
        return _some(ODD_WORDS + ODD_NUMBERS, generator, 2)
    if hint is bool:
        return []
    kinds = [kind for kind in get_args(hint) or (hint,) if kind not in (type(None), Ellipsis)]
    if get_origin(hint) is tuple:
        return [_value(name, kinds[0], generator) for _ in range(generator.randrange(1, 4))]
    return [_value(name, hint if get_origin(hint) is Literal else kinds[0], generator)]


def _value(name: str, kind: Any, generator: Generator) -> str:
    if name in WORDS:
        return str(generator.choice(WORDS[name]))
    if get_origin(kind) is Literal:
        return str(generator.choice(get_args(kind)))
    if kind in (int, float):
        small = ("1", "2", "3", "8", "16") if kind is int else ("0.1", "0.5", "1", "0.01", "2")
        return generator.choice(small if generator.random() < 0.6 else ODD_NUMBERS)
    return generator.choice(ODD_WORDS)


def prepared(folder: Path) -> None:
    """Runs, data, an empty folder, files, a link that leads to itself."""
    shutil.copytree(_WORLD[0], folder, symlinks=True, dirs_exist_ok=True)


_WORLD: list[Path] = []


def world(folder: Path) -> Path:
    """What a user might have."""
    launch(CONFIG, folder / "run", Place("cpu", threads=1), Control())
    shutil.copytree(folder / "run", folder / "other")
    weights = load_file(folder / "run" / "model.safetensors")
    last = {name.removeprefix("last."): t for name, t in weights.items() if name.startswith("last.")}
    save_file(last, folder / "weights.safetensors")
    images, labels = np.zeros((6, 3, 5, 5), np.uint8), np.arange(6)
    np.savez(folder / "mine.npz", x=images, y=labels, x_test=images, y_test=labels)
    (folder / "empty").mkdir()
    (folder / "sealed").mkdir(mode=0)
    (folder / "file.txt").write_text("words\n")
    (folder / "mine.toml").write_text("[[run]]\nmodel = 'fc'\n")
    (folder / "loop").symlink_to("loop")
    return folder


def spoil(command: str) -> Callable[[Path, Generator], None]:
    """Writes the words that the command is given."""

    def choose(folder: Path, generator: Generator) -> None:
        (folder / INPUT).write_text(json.dumps(words_for(command, generator)))

    return choose


def use(folder: Path) -> None:
    """Runs the words; raises unless the answer is work, or one sentence and no file changed."""
    words = json.loads((folder / INPUT).read_text())
    before = _files(folder)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", how) for how in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(err), _inside(folder):
        try:
            code = command_line(words)
        except SystemExit as left:
            code = left.code
        except Begins:
            return
        except BaseException as error:
            error.add_note(f"words: {words!r}")
            raise
    said = [(stream.flush(), stream.buffer.getvalue().decode())[1] for stream in (out, err)]  # type: ignore[attr-defined]
    _judge(words, code, *said, unchanged=_files(folder) == before)
    if code == 2:
        raise SystemExit(2)


def _judge(words: list[str], code: object, out: str, err: str, *, unchanged: bool) -> None:
    about = f"{words!r} gave {code!r}, output {out!r:.300}, errors {err!r:.600}"
    assert code in (0, 2, 130), about
    assert code == 0 or "╭" not in out + err, f"a box: {about}"
    if code == 2 and len(words) > 1:
        assert err.startswith("lowland: "), about
        assert err.count("\n") == 1, f"more than one line: {about}"
        assert err.endswith((".\n", ").\n")), f"no sentence: {about}"
        assert unchanged, f"a file changed: {about}"


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below one, with its size and when it was written."""
    found = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        found[str(path)] = (
            about.st_size,
            0 if path.is_dir() and not path.is_symlink() else about.st_mtime_ns,
        )
    return found


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def cut_off() -> Iterator[None]:
    """Nothing trains, measures or simulates: what would is where an input ends."""
    begins = mock.Mock(side_effect=Begins)
    ends = (
        "lowland.deep.measures._Taking.taken",
        "lowland.deep.scenery._Looking.seen",
        "lowland.diagonal.experiment.in_threads",
        "lowland.relu.experiment.in_threads",
        "lowland.diagonal.theorem2.loss_gap",
        "lowland.sweeps.here.Here.__call__",
        "lowland.sweeps.processes.Processes.__call__",
        "lowland.sweeps.ray.Ray.opened",
    )
    with ExitStack() as stack:
        for name in ends:
            stack.enter_context(mock.patch(name, begins))
        launching = sys.modules["lowland.deep.launch"]  # the package has a function of this name
        stack.enter_context(mock.patch.object(launching, "TrainState", _begun))
        stack.enter_context(mock.patch.object(launching, "train", begins))
        yield


def _begun(config: TrainConfig, *args: Any, **options: Any) -> None:
    """What is found out before training begins, for networks that are small enough to be built."""
    if config.model in {"fc", "linear"} and (config.model_width or 0) <= 16 and config.n_layers <= 3:
        TrainState(config, *args, **options)
    raise Begins


TARGETS: Mapping[str, Target] = {name: Target(prepared, spoil(name), use) for name in (*COMMANDS, "runs")}


def main() -> int:
    """Fuzzes every command and prints a line for each."""
    arguments = asked(__doc__, TARGETS, plant="an internal error in the parser of options")
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    os.environ.pop("LOWLAND_DATA", None)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("LOWLAND_CACHE", f"{folder}/cache")
        _WORLD.append(world(Path(folder) / "world"))
        with cut_off(), _planted(arguments.plant):
            return all_fuzzed(TARGETS, Path(folder) / "target", arguments)


@contextmanager
def _planted(planted: bool) -> Iterator[None]:
    """An error of the program's own, as opposed to one of its input."""
    wrong = mock.Mock(side_effect=AttributeError("planted"))
    with mock.patch.object(lowland.cli.arguments, "_check_number", wrong) if planted else ExitStack():
        yield


if __name__ == "__main__":
    sys.exit(main())
