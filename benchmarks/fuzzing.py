"""What scripts that fuzz share: targets, a process for inputs, a time limit for each, and counts."""

import argparse
import os
import random
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lowland.errors import InputError

SECONDS = 10
_BROKEN = 70
"""Exit code of a process in which not an input failed, but the script."""
Generator = random.Random


@dataclass(frozen=True)
class Target:
    """Something that reads.

    Attributes:
        prepare: Writes whole files into an empty folder.
        spoil: Damages what is in a folder.
        use: Uses it as a user does.
    """

    prepare: Callable[[Path], object]
    spoil: Callable[[Path, Generator], object]
    use: Callable[[Path], object]


class _Hang(BaseException):
    """It took too long."""


def asked(description: str | None, targets: Mapping[str, Target], *, plant: str) -> argparse.Namespace:
    """What the command line says: how many inputs of which targets, and whether to plant an error."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=verbatim)
    parser.add_argument("--count", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(targets), default=list(targets))
    parser.add_argument("--plant", action="store_true", help=plant)
    return parser.parse_args()


def all_fuzzed(targets: Mapping[str, Target], folder: Path, arguments: argparse.Namespace) -> bool:
    """Prints a line for each target; whether there was a traceback, a hang or a crash."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    total: Counter[str] = Counter()
    for name in arguments.only:
        counts = fuzzed(name, targets[name], folder, arguments.count, arguments.seed)
        total += counts
        print(f"{name:40}" + _line(counts), flush=True)
    print(f"{'all':40}" + _line(total))
    return bool(total["traceback"] or total["hang"] or total["crash"])


def fuzzed(name: str, target: Target, folder: Path, count: int, seed: int) -> Counter[str]:
    """What became of each input of a target; in processes of their own, which may crash."""
    done, counts = 0, Counter[str]()
    while done < count:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                with os.fdopen(writing, "w") as told:
                    for k in range(done, count):
                        told.write(f"{_one(target, folder, Generator(f'{seed} {name} {k}'), k)}\n")
                        told.flush()
                os._exit(0)
            except BaseException:  # an error of the script's; the files are its parent's to remove
                traceback.print_exc()
                os._exit(_BROKEN)
        os.close(writing)
        with os.fdopen(reading) as heard:
            words = heard.read().split()
        counts += Counter(words)
        done += len(words)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == _BROKEN:
            raise RuntimeError(f"the script itself failed at {name}, input {done}")
        if code != 0 and done < count:
            print(f"CRASH: {name}, input {done}")
            counts["crash"] += 1
            done += 1
    return counts


def _one(target: Target, folder: Path, generator: Generator, number: int) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target.prepare(folder)
    target.spoil(folder, generator)
    for limit in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(limit, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(20 * SECONDS)  # one that waits uses no processor; a busy machine makes others wait
    try:
        target.use(folder)
    except (InputError, OSError):
        return "refused"
    except SystemExit as left:
        return "refused" if left.code == 2 else "read"
    except _Hang:
        print(f"HANG: input {number}", file=sys.stderr)
        return "hang"
    except BaseException:  # what this is here to find
        print(f"TRACEBACK: input {number}\n{traceback.format_exc()}", file=sys.stderr)
        return "traceback"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return "read"


def _too_long(*_: object) -> None:
    raise _Hang


def _line(counts: Counter[str]) -> str:
    kinds = ("read", "refused", "traceback", "hang", "crash")
    return f"{counts.total():8d} inputs" + "".join(f"{counts[kind]:8d} {kind}" for kind in kinds)
