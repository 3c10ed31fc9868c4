"""Damages files and looks at what their readers make of them: a result, or one sentence.

    python benchmarks/fuzz.py                       # 10,000 inputs for each target
    python benchmarks/fuzz.py --count 100 --only "config.json" "a .pth"
    python benchmarks/fuzz.py --plant               # with an internal error: it must come out as a traceback

A target is whole files, a way to spoil them, and a use of them; ``TARGETS`` is a table to add to. What is
counted: inputs that are read, that are refused (``InputError``, ``OSError``, exit code 2), tracebacks, hangs
(ten seconds of the processor) and crashes of the interpreter. Exits with 1 unless the last three are 0.
"""

import functools
import json
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

import lowland.runs.schema
from fuzzing import Generator, Target, all_fuzzed, asked
from lowland.deep import Control, Place, TrainConfig, TrainState, launch, load_data, load_weights
from lowland.deep.checkpoint import load_checkpoint, saved_states
from lowland.deep.data import divided_own_data, read_own_data
from lowland.deep.data.cache import cached
from lowland.deep.data.locate import locate
from lowland.deep.data.parquet import read_images
from lowland.deep.data.sets import DATASETS
from lowland.deep.loading import load_subject
from lowland.deep.models import build_model
from lowland.deep.options import OwnDataOptions
from lowland.deep.records import MeasureRow, MetricsRow, TrainingSummary
from lowland.deep.subject import SubjectOptions
from lowland.diagonal.experiment import DiagonalConfig
from lowland.errors import InputError
from lowland.figures.curves import draw_curves
from lowland.report.gathered import gathered
from lowland.report.page import page
from lowland.runs import Run, read_lines, read_table
from lowland.runs.lines import append_line
from lowland.sweeps import Store

CONFIG = TrainConfig(frac_train=0.1, model="fc", model_width=4, epochs=1, batch_size=32)
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "figures"


def bytes_of(name: str) -> Callable[[Path, Generator], None]:
    """Flips, cuts, doubles and overwrites bytes of a file."""

    def spoil(folder: Path, generator: Generator) -> None:
        path = folder / name
        path.write_bytes(spoiled_bytes(path.read_bytes(), generator))

    return spoil


def spoiled_bytes(content: bytes, generator: Generator) -> bytes:
    """Bytes with one to four things wrong."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        at, size = generator.randrange(len(data) + 1), generator.choice((1, 1, 2, 8, 64))
        kind = generator.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << generator.randrange(8)
        elif kind == 1:
            data[at : at + size] = generator.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            del data[at:]
        else:
            data[at : at + size] = generator.choice((b"\0", b"\xff")) * size
    return bytes(data)


def values_of(name: str) -> Callable[[Path, Generator], None]:
    """Puts other values into a JSON file, takes some out, or spoils its bytes."""

    def spoil(folder: Path, generator: Generator) -> None:
        path = folder / name
        if generator.random() < 0.2:
            bytes_of(name)(folder, generator)
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            at = generator.randrange(len(lines))
            lines[at] = json.dumps(spoiled_value(json.loads(lines[at]), generator))
            path.write_text("".join(f"{line}\n" for line in lines) * generator.choice((1, 1, 1, 0)))
        else:
            path.write_text(json.dumps(spoiled_value(json.loads(path.read_text()), generator)))

    return spoil


def spoiled_value(value: Any, generator: Generator) -> Any:
    """A JSON value in which one thing is another, is missing, or is too much."""
    if isinstance(value, (dict, list)) and value and generator.random() < 0.93:
        found = dict(value) if isinstance(value, dict) else list(value)
        key = generator.choice(list(found) if isinstance(found, dict) else range(len(found)))
        if generator.random() < 0.2:
            del found[key]
        else:
            found[key] = spoiled_value(found[key], generator)
        return found
    return generator.choice(_ODD)()


_ODD: tuple[Callable[[], Any], ...] = (
    *(lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 1, lambda: 10**6, lambda: 10**30),
    *(lambda: 0.5, lambda: -1e300, lambda: float("nan"), lambda: float("inf"), lambda: 1e-320),
    *(
        lambda: "",
        lambda: "text",
        lambda: "\ud800",
        lambda: "a\nb",
        lambda: "[/x]",
        lambda: "\0",
        lambda: "x" * 9999,
    ),
    *(lambda: [], lambda: [[]], lambda: [1, "a"], lambda: {}, lambda: {"a": None}, lambda: {"": {"": []}}),
)


def _run(folder: Path) -> None:
    shutil.copytree(_TRAINED[0], folder / "run")


_TRAINED: list[Path] = []


def _is_shown(folder: Path) -> None:
    """What every command that reads a run asks of it."""
    run = Run.open(folder / "run")
    Place.of(run)
    if "command" not in run.config:
        TrainConfig.from_dict(run.config)
    if run.is_finished:
        run.read("summary.json", TrainingSummary)
    run.rows(MetricsRow)


def _is_drawn(folder: Path) -> None:
    Run.open(folder / "run").last_row(MetricsRow)
    draw_curves(folder / "run")


def _is_continued(folder: Path) -> None:
    run = Run.open(folder / "run")
    launch(TrainConfig.from_dict(run.config), run.path, Place("cpu", threads=1), Control())


def _is_reported(folder: Path) -> None:
    page(gathered([folder]))


def _is_measured(folder: Path) -> None:
    load_subject(str(folder / "run"), SubjectOptions(device="cpu"))
    read_lines(folder / "run" / "sharpness.jsonl", MeasureRow)


@functools.cache
def _state() -> TrainState:
    return TrainState(CONFIG, load_data(CONFIG), torch.device("cpu"))


def _a_figure(folder: Path) -> None:
    shutil.copytree(RESULTS / "fig1-quick", folder / "figure")


def _a_pth(folder: Path) -> None:
    state = _state().model.state_dict()
    torch.save({"last": state, "best": state}, folder / "x.pth", _use_new_zipfile_serialization=True)


def _an_old_pth(folder: Path) -> None:
    torch.save(_state().model.state_dict(), folder / "x.pth", _use_new_zipfile_serialization=False)


def _entries(folder: Path, generator: Generator) -> None:
    """A ``.pth`` in which something stands in place of a tensor."""
    state: dict[Any, Any] = dict(_state().model.state_dict())
    name = generator.choice(list(state))
    t = state[name]
    flat = generator.choice(
        (
            *(t.to_sparse, lambda: t.to("meta"), lambda: t.to(torch.complex64), t.tolist, lambda: None),
            *(lambda: t.double(), lambda: t.bool(), lambda: t.to(torch.float8_e4m3fn), lambda: t[:0], t.t),
            *(lambda: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8), lambda: t.expand(3, *t.shape)),
            *(
                lambda: torch.nn.Parameter(t),
                lambda: {"a": t},
                lambda: torch.as_strided(t, (10**6, 10**6), (0, 0)),
            ),
        )
    )
    state[generator.choice((name, name, name, "other", 3, ("a",)))] = flat()
    torch.save(state, folder / "x.pth")
    if generator.random() < 0.3:
        bytes_of("x.pth")(folder, generator)


def _pickled(folder: Path, generator: Generator) -> None:
    """A pickle of something else."""
    value = spoiled_value({"last": {"a": [1, {"b": 2.0}]}, "best": [None, "x"]}, generator)
    (folder / "x.pth").write_bytes(pickle.dumps(value, protocol=generator.randrange(6)))
    if generator.random() < 0.7:
        bytes_of("x.pth")(folder, generator)


def _bits(t: torch.Tensor) -> torch.Tensor:
    """The bytes: what was read before may be no numbers."""
    return t.flatten().view(torch.uint8)


def _is_loaded(name: str) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        model = _state().model
        before = {key: t.clone() for key, t in model.state_dict().items()}
        try:
            load_weights(model, folder / name)
        except InputError:
            after = model.state_dict()
            assert all(torch.equal(_bits(before[key]), _bits(t)) for key, t in after.items()), "half loaded"
            raise

    return use


def _some_parquet(folder: Path) -> None:
    shutil.copy(locate(DATASETS["digits"].test, "test").paths[0], folder / "x.parquet")
    table = pq.read_table(folder / "x.parquet").slice(0, 20)
    pq.write_table(table, folder / "x.parquet", compression=None)


def _columns(folder: Path, generator: Generator) -> None:
    """A Parquet file of the layout, but of other types, names, nulls, or text that is none."""
    table = pq.read_table(folder / "x.parquet")
    images = table["image"].combine_chunks()
    fields = {field.name: images.field(field.name) for field in images.type}
    name = generator.choice(list(fields))
    odd: tuple[Callable[[], Any], ...] = (
        lambda: pa.array([b"\xff\xfe"] * 20).view(pa.string()),
        lambda: pa.array([spoiled_bytes(fields["bytes"][0].as_py(), generator)] * 20),
        lambda: pa.array([None] * 20, pa.binary()),
        lambda: pa.array([b""] * 20).dictionary_encode(),
        lambda: pa.array([1.5] * 20),
        lambda: pa.array([[1]] * 20),
    )
    fields[name] = generator.choice(odd)()
    labels = generator.choice(
        (table["label"], pa.array([2**63] * 20, pa.uint64()), pa.array([None] * 20, pa.int8()))
    )
    names = generator.choice((["image", "label"], ["image", "image"], ["label", "image"], ["a", "label"]))
    rows = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    pq.write_table(pa.Table.from_arrays([rows, labels], names=names), folder / "x.parquet")


def _some_table(folder: Path) -> None:
    columns = {"run": ["a", "b"], "u": [[1.0], [2.0]], "v": [1, 2]}
    pq.write_table(pa.table(columns), folder / "x.parquet", compression=None)


def _own_data(folder: Path) -> None:
    x, y = np.zeros((6, 1, 8, 8), np.uint8), np.arange(6)
    np.savez(folder / "x.npz", x=x, y=y, x_test=x, y_test=y)
    save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, folder / "x.safetensors")


def _is_own_data(name: str) -> Callable[[Path], None]:
    options = {"device": "cpu", "data": None, "model": "linear"}

    def use(folder: Path) -> None:
        network = build_model("linear", num_classes=6, image_shape=(1, 8, 8))
        torch.save(network.state_dict(), folder / "w.pth")
        load_subject(str(folder / "w.pth"), SubjectOptions(**{**options, "data": str(folder / name)}))

    return use


def _photos(folder: Path) -> None:
    """Two classes, a picture of each format."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    for name in ("a", "b"):
        (folder / "photos" / name).mkdir(parents=True)
        for suffix in _FORMATS:
            Image.fromarray(pixels).save(folder / "photos" / name / f"x.{suffix}")


_FORMATS = ("png", "jpg", "webp", "gif", "tiff", "bmp", "ppm")


def _a_picture(folder: Path, generator: Generator) -> None:
    """Bytes of one of the pictures."""
    bytes_of(f"photos/a/x.{generator.choice(_FORMATS)}")(folder, generator)


def _is_read(name: str) -> Callable[[Path], None]:
    """Data of somebody's own, divided as for training."""

    def use(folder: Path) -> None:
        options = OwnDataOptions(data=str(folder / name), channels=3 if name == "photos" else None)
        divided_own_data(read_own_data(options, cache_dir=folder / "cache"))

    return use


def _problem(folder: Path) -> None:
    np.savez(folder / "x.npz", X=np.eye(4), y=np.ones(4))


def _times(folder: Path) -> None:
    append_line(folder / "times.jsonl", {"task": "a", "seconds": 1.0})


def _a_cache(folder: Path) -> None:
    _is_cached(folder)


def _is_cached(folder: Path) -> None:
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)
    cached("x", [], 64 * "0", lambda: (images, labels), cache_dir=folder)


_CACHED = f"x-{12 * '0'}.safetensors"
_CHECKPOINT = "run/checkpoint/state.safetensors"

TARGETS: Mapping[str, Target] = {
    "a folder of pictures": Target(_photos, _a_picture, _is_read("photos")),
    "one's own Parquet": Target(_some_parquet, bytes_of("x.parquet"), _is_read("x.parquet")),
    "one's own Parquet of odd columns": Target(_some_parquet, _columns, _is_read("x.parquet")),
    "one's own .npz to train on": Target(_own_data, bytes_of("x.npz"), _is_read("x.npz")),
    "env.json": Target(_run, values_of("run/env.json"), _is_shown),
    "config.json": Target(_run, values_of("run/config.json"), _is_shown),
    "config.json of a run that goes on": Target(_run, values_of("run/config.json"), _is_continued),
    "config.json of a run that is measured": Target(_run, values_of("run/config.json"), _is_measured),
    "summary.json": Target(_run, values_of("run/summary.json"), _is_shown),
    "metrics.jsonl": Target(_run, values_of("run/metrics.jsonl"), _is_shown),
    "metrics.jsonl that is drawn": Target(_run, values_of("run/metrics.jsonl"), _is_drawn),
    "sharpness.jsonl": Target(_run, values_of("run/sharpness.jsonl"), _is_reported),
    "figure.json": Target(_a_figure, values_of("figure/figure.json"), _is_reported),
    "data.parquet of a figure": Target(_a_figure, bytes_of("figure/data.parquet"), _is_reported),
    "times.jsonl": Target(_times, values_of("times.jsonl"), lambda folder: Store(folder).times()),
    "a checkpoint": Target(_run, bytes_of(_CHECKPOINT), lambda f: load_checkpoint(f / _CHECKPOINT, _state())),
    "a checkpoint that is measured": Target(
        _run, bytes_of(_CHECKPOINT), lambda f: saved_states(f / _CHECKPOINT)
    ),
    "model.safetensors": Target(_run, bytes_of("run/model.safetensors"), _is_loaded("run/model.safetensors")),
    "a .pth": Target(_a_pth, bytes_of("x.pth"), _is_loaded("x.pth")),
    "a .pth of the old format": Target(_an_old_pth, bytes_of("x.pth"), _is_loaded("x.pth")),
    "a .pth of other things": Target(lambda _: None, _entries, _is_loaded("x.pth")),
    "a pickle": Target(lambda _: None, _pickled, _is_loaded("x.pth")),
    "Parquet": Target(
        _some_parquet,
        bytes_of("x.parquet"),
        lambda f: read_images([f / "x.parquet"], DATASETS["digits"].test),
    ),
    "Parquet of other columns": Target(
        _some_parquet, _columns, lambda f: read_images([f / "x.parquet"], DATASETS["digits"].test)
    ),
    "a table": Target(
        _some_table, bytes_of("x.parquet"), lambda f: read_table(f / "x.parquet", ("run", "u"))
    ),
    "own data, .npz": Target(_own_data, bytes_of("x.npz"), _is_own_data("x.npz")),
    "own data, .safetensors": Target(_own_data, bytes_of("x.safetensors"), _is_own_data("x.safetensors")),
    "a problem, .npz": Target(
        _problem, bytes_of("x.npz"), lambda f: DiagonalConfig(data=f / "x.npz").problem(0)
    ),
    "decoded images": Target(_a_cache, bytes_of(_CACHED), _is_cached),
}


def main() -> int:
    """Fuzzes every target and prints a line for each."""
    arguments = asked(__doc__, TARGETS, plant="an internal error in the reader of JSON")
    with tempfile.TemporaryDirectory() as folder:
        _TRAINED.append(_trained(Path(folder) / "trained"))
        with _planted(arguments.plant):
            return all_fuzzed(TARGETS, Path(folder) / "target", arguments)


def _trained(path: Path) -> Path:
    """A whole run with measures, of a process of its own: no thread of it may live when this one forks."""
    launch(CONFIG, path, Place("cpu", threads=1), Control())
    draw_curves(path)
    row = {"measure": "worst case", "value": 0.1, "m": 1, "rho": 0.1, "stderr": None}
    (path / "sharpness.jsonl").write_text(json.dumps(row) + "\n")
    return path


@contextmanager
def _planted(planted: bool) -> Iterator[None]:
    """An error of the program's own, as opposed to one of its input."""
    before = lowland.runs.schema._is_int
    if planted:
        lowland.runs.schema._PLAIN[int] = ("a whole number", lambda value: value.no_such_attribute)
    try:
        yield
    finally:
        lowland.runs.schema._PLAIN[int] = ("a whole number", before)


if __name__ == "__main__":
    sys.exit(main())
