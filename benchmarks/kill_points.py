"""Kills a run at every file event, fills the disk, flips bits: what is left goes on or is refused.

    python benchmarks/kill_points.py              # a SIGKILL before and after everything that touches a file
    python benchmarks/kill_points.py --every 7    # before and after every seventh
    python benchmarks/kill_points.py --full-disk  # at eight sizes
    python benchmarks/kill_points.py --flips 600  # so many bits of the header and of the data, of both files

A killed run is continued by ``lowland train --resume``, or by its own command if it has no config yet. It
must end with the files of a run that was left alone, no other file, and the same bytes but for times.
Exits with 1 if anything is bad.
"""

import argparse
import io
import itertools
import json
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import done, warmed_up
from lowland.cli import main as lowland
from lowland.deep import Place, TrainConfig, TrainState, load_data, load_weights
from lowland.deep.checkpoint import load_checkpoint
from lowland.errors import InputError
from lowland.runs import Run

TRAIN = shlex.split(
    "train --dataset digits --frac_train 0.2 --model fc --model_width 8 --epochs 3 --batch_size 64 "
    "--sam_rho 0.1 --m 16 --l2_reg 0.0005 --save_model_each_k_epochs 2 --export_images "
    "--device cpu --threads 1 --quiet"
)
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.listdir")


def main() -> int:
    """Does one of the three, and prints what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="kill at every so many events only")
    parser.add_argument("--full-disk", action="store_true")
    parser.add_argument("--flips", type=int, default=0)
    arguments = parser.parse_args()
    warmed_up()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole" / "run"
        points = _recorded(whole)
        if arguments.flips:
            return _flip(whole, arguments.flips)
        if arguments.full_disk:
            return _fill(whole)
        kinds = Counter(point.split(" of ")[0] for point in points)
        for kind, count in kinds.items():
            print(f"{count:4d} {kind}")
        bad = 0
        chosen = range(1, len(points) + 1, arguments.every)
        for k in chosen:
            run = Path(folder) / str(k) / "run"
            done(lambda run=run, k=k: _Points(run, k).watched(lambda: lowland(_first(run))))
            bad += _report(points[k - 1], _continued(run, whole))
            shutil.rmtree(run.parent)
        print(f"{len(chosen)} of {len(points)} kill points, {bad} bad")
        return bad and 1


class _Points:
    """Counts what touches a file below a folder, and kills the process at the ``last`` of it."""

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last, self.seen = str(folder), last, list[str]()

    def watched(self, work: Callable[[], int]) -> int:
        """Does it, watched for the rest of the process."""
        opened, synced = io.open, os.fsync

        def open_(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(path, mode, *args, **kwargs)
            if mode[0] in "wax" and self.inside(path):
                self.at(f"after open to write of {path}")
                if mode[0] == "a":
                    self.at(f"half a row in of {path}", lambda: file.write(b'{"epoch": 1, "tr'))
            return file

        def fsync(descriptor: int) -> None:
            self.at("before fsync of a file")
            synced(descriptor)

        io.open, os.fsync = open_, fsync
        sys.addaudithook(lambda event, args: self.heard(event, args))
        return work()

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS and args and self.inside(args[0]):
            self.at(f"before {event} of {args[0]}")

    def inside(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder)

    def at(self, what: str, before: Callable[[], object] = lambda: None) -> None:
        self.seen.append(what)
        if len(self.seen) == self.last:
            before()
            os.kill(os.getpid(), signal.SIGKILL)


def _recorded(run: Path) -> list[str]:
    """What a run that is left alone does to files."""
    found = run.parent.parent / "points.json"

    def work() -> int:
        points = _Points(run, -1)
        code = points.watched(lambda: lowland(_first(run)))
        found.write_text(json.dumps(points.seen))
        return code

    if done(work) != 0:
        raise SystemExit("the run that was left alone failed.")
    points: list[str] = json.loads(found.read_text())
    return points


def _continued(run: Path, whole: Path) -> str | None:
    """Continues a run; what is wrong with it then."""
    words = ["train", "--resume", str(run)] if (run / "config.json").exists() else _first(run)
    code = done(lambda: lowland(words))
    return f"ends with {code}" if code != 0 else _difference(run, whole)


def _difference(run: Path, whole: Path) -> str | None:
    ours, theirs = ({str(p.relative_to(d)) for p in d.rglob("*")} for d in (run, whole))
    if ours != theirs:
        return f"has {sorted(ours - theirs)} more and {sorted(theirs - ours)} less"
    for name in sorted(theirs - {"checkpoint", "checkpoint/state.safetensors"}):
        if _timeless(run / name) != _timeless(whole / name):
            return f"has another {name}"
    for path in (run, whole):
        if "seconds" not in Run.open(path).last_row():
            return "has no times"
    return None


def _timeless(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
    if path.name == "summary.json":
        return {kind: row | {"seconds": 0} for kind, row in json.loads(path.read_text()).items()}
    return path.read_bytes()


def _fill(whole: Path) -> int:
    """Lets no file grow beyond a size, as on a full disk; then there is room again."""
    largest = max(path.stat().st_size for path in whole.rglob("*"))
    bad = 0
    for size in (0, 1, 100, 1000, *(largest * part // 4 for part in (1, 2, 3)), largest - 1):
        run = whole.parent.parent / f"at most {size}" / "run"

        def work(run: Path = run, size: int = size) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return lowland(_first(run))

        code = done(work)
        bad += _report(f"files of at most {size} bytes", _continued(run, whole) if code == 2 else f"{code}")
    print(f"8 sizes, {bad} bad")
    return bad and 1


def _flip(whole: Path, count: int) -> int:
    """Flips one bit at a time; a file that is read nevertheless is bad."""
    stored = Run.open(whole)
    config = TrainConfig.from_dict(stored.config)
    state = TrainState(config, load_data(config), Place("cpu").torch_device())
    files = {
        stored.checkpoint_path: lambda path: load_checkpoint(path, state),
        stored.model_path: lambda path: load_weights(state.model, path),
    }
    generator, bad = random.Random(0), 0
    for (path, read), part in itertools.product(files.items(), ("header", "data")):
        content = path.read_bytes()
        read(path)
        header = 8 + int.from_bytes(content[:8], "little")
        start, end = (0, header) if part == "header" else (header, len(content))
        accepted = sum(
            _is_read(path, content, generator.randrange(8 * start, 8 * end), read) for _ in range(count)
        )
        print(f"{count} bits of the {part} of {path.name}: {accepted} accepted")
        bad += accepted
    return bad and 1


def _is_read(path: Path, content: bytes, bit: int, read: Callable[[Path], object]) -> bool:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    other = path.with_name(f"damaged {path.name}")
    other.write_bytes(damaged)
    try:
        read(other)
    except InputError:
        return False
    return True


def _first(run: Path) -> list[str]:
    return [*TRAIN, "--out", str(run)]


def _report(what: str, wrong: str | None) -> int:
    if wrong is not None:
        print(f"BAD: {what}: {wrong}", flush=True)
    return wrong is not None


if __name__ == "__main__":
    sys.exit(main())
